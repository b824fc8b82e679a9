"""GPTQModel: 4 bits in groups of 64, symmetric, its other settings as they come."""

import os
import tempfile

import torch
from compressing import compare

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default on two cores is one, which it refuses
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def compress(folder, method, calibration):
    config = QuantizeConfig(bits=4, group_size=64, sym=True)
    model = GPTQModel.load(folder, config, device="cpu", dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration]
    model.quantize(rows, batch_size=1)
    with tempfile.TemporaryDirectory() as output:
        model.save(output)
        return GPTQModel.load(output, device="cpu", backend=BACKEND.TORCH).model.float()


compare("gptqmodel", compress)
