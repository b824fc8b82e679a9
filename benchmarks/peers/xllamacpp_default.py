"""llama.cpp as its wheel comes: xllamacpp's in-process server. Arguments: the GGUF file, slots."""

import sys
from concurrent.futures import ThreadPoolExecutor

import xllamacpp
from common import serve

slots = int(sys.argv[2])
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_parallel = slots
parameters.n_ctx = 1024 * slots
server = xllamacpp.Server(parameters)


def answer(prompt, new_tokens):
    request = {"prompt": prompt, "n_predict": new_tokens, "max_tokens": new_tokens, "temperature": 0,
               "ignore_eos": True, "cache_prompt": False}  # fmt: skip
    return server.handle_completions(request)["usage"]["completion_tokens"]


def generate(prompts, new_tokens):
    with ThreadPoolExecutor(len(prompts)) as pool:
        return sum(pool.map(lambda prompt: answer(prompt, new_tokens), prompts))


serve(generate)
