"""Factored weights in a transformers model: each such layer runs as two smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negawatt.artifact.factored_tensor import FactoredTensor
from negawatt.artifact.packed_file import read_packed
from negawatt.catalog.manifest import PACKED_FILE


def factors(folder: Path) -> dict[str, FactoredTensor]:
    """The factored matrices of an artifact by name; none where it is not packed."""
    if not (folder / PACKED_FILE).is_file():
        return {}
    return {n: t for n, t in read_packed(folder).items() if isinstance(t, FactoredTensor)}


def install(model: Any, found: Mapping[str, FactoredTensor]) -> int:
    """Put two layers where the model has one, in the model's own type; how many were replaced.

    Only ``torch.nn.Linear`` is replaced: other kinds keep the product, which is the same function.
    """
    import torch

    replaced = 0
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    for name, tensor in found.items():
        path = name.removesuffix(".weight")
        path = path if path in modules else prefix + path
        layer = modules.get(path)
        if not isinstance(layer, torch.nn.Linear):
            continue
        dtype = layer.weight.dtype
        parent, _, leaf = path.rpartition(".")
        wide = _layer(torch.from_numpy(tensor.right.float32()).to(dtype), None)
        tall = _layer(torch.from_numpy(tensor.left.float32()).to(dtype), layer.bias)
        setattr(modules[parent], leaf, torch.nn.Sequential(wide, tall))
        replaced += 1
    return replaced


def _layer(weight: Any, bias: Any) -> Any:
    import torch

    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    made.bias = bias
    return made
