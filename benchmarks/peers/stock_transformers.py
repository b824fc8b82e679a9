"""transformers as it comes: fp32, ``model.generate``, its default threads. Argument: checkpoint folder."""

import sys

import torch
from common import serve
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()


def generate(prompts, new_tokens):
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        out = model.generate(**batch, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    return (out.shape[1] - batch["input_ids"].shape[1]) * out.shape[0]


serve(generate)
