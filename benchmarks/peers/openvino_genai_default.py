"""OpenVINO GenAI as it comes: ``LLMPipeline`` on the GGUF file. Argument: the GGUF file."""

import sys

import openvino_genai
from common import serve

pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU")


def generate(prompts, new_tokens):
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.apply_chat_template = new_tokens, True, False
    pipeline.generate(prompts if len(prompts) > 1 else prompts[0], config)
    return new_tokens * len(prompts)  # ignore_eos: exactly this many


serve(generate)
