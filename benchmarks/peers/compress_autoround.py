"""AutoRound: 4 bits in groups of 64, symmetric, by its light recipe (50 steps a block) or ``full``."""

import torch
from auto_round import AutoRound
from compressing import compare
from transformers import AutoModelForCausalLM, AutoTokenizer

ITERATIONS = {"light": {"iters": 50, "lr": 5e-3}, "full": {"iters": 200}}


def compress(folder, method, calibration):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [{"input_ids": torch.from_numpy(row)[None]} for row in calibration]
    rounding = AutoRound(
        model, AutoTokenizer.from_pretrained(folder), bits=4, group_size=64, sym=True, device_map="cpu",
        dataset=rows, nsamples=len(rows), seqlen=calibration.shape[1], batch_size=4, amp=False,
        **ITERATIONS[method],
    )  # fmt: skip
    model, _ = rounding.quantize()
    return model


compare("auto-round", compress)
