"""llm-compressor: ``gptq`` (4 bits, groups of 64, symmetric), ``wanda`` or ``sparsegpt`` (50 %)."""

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressing import compare
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from transformers import AutoModelForCausalLM

WEIGHTS = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=64, symmetric=True)
RECIPES = {
    "gptq": lambda: GPTQModifier(
        config_groups={"blocks": QuantizationScheme(targets=["Linear"], weights=WEIGHTS)}, ignore=["lm_head"]
    ),
    "wanda": lambda: WandaPruningModifier(
        sparsity=0.5, mask_structure="0:0", targets=["Linear"], ignore=["lm_head"]
    ),
    "sparsegpt": lambda: SparseGPTModifier(
        sparsity=0.5, mask_structure="0:0", targets=["Linear"], ignore=["lm_head"]
    ),
}


def compress(folder, method, calibration):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration]
    oneshot(
        model=model, dataset=Dataset.from_list(rows), recipe=RECIPES[method](),
        max_seq_length=calibration.shape[1], num_calibration_samples=len(rows),
    )  # fmt: skip
    return model


compare("llmcompressor", compress)
