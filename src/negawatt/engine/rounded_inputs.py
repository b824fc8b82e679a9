"""Inputs that an artifact says are rounded to 8 bits: which they are, and rounding them in torch modules.

Here the rounded values stay floats: the same results as with integers, at no saving. `openvino_ir` is
where they become integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.artifact.packed_file import AnyTensor, PackedTensor, read_packed
from negawatt.catalog.manifest import PACKED_FILE

if TYPE_CHECKING:
    import torch

LEAST, MOST = -128, 127
"""Multiples of the scale that an input may become."""


def rounding(tensors: Mapping[str, AnyTensor]) -> dict[str, PackedTensor]:
    """The matrices whose inputs are rounded, by name."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, PackedTensor) and tensor.input_scale is not None
    }


def rounding_of(folder: Path) -> dict[str, PackedTensor]:
    """`rounding` of an artifact's folder; none where it is not packed."""
    return rounding(read_packed(folder)) if (folder / PACKED_FILE).is_file() else {}


def rounded(values: torch.Tensor, scale: float) -> torch.Tensor:
    """The nearest multiples of `scale` that 8 bits can count, in the type of `values`.

    A gradient passes straight through (Bengio et al. 2013), so that a model can be healed that rounds.
    """
    found = (values / scale).round().clamp(LEAST, MOST) * scale
    return values + (found - values).detach() if values.requires_grad else found


def install(layer: Any, scale: float) -> Any:
    """Round what a module gets from now on; returns the handle that takes it back."""

    def hook(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounded(inputs[0], scale), *inputs[1:])

    return layer.register_forward_pre_hook(hook)


def install_all(model: Any, found: Mapping[str, PackedTensor]) -> int:
    """Round the inputs of a transformers model's layers by their names in the checkpoint; how many."""
    modules = dict(model.named_modules())
    n_installed = 0
    prefix = f"{model.base_model_prefix}."
    for name, tensor in found.items():
        path = name.removesuffix(".weight")
        layer = modules.get(path) or modules.get(prefix + path) or modules.get(path.removeprefix(prefix))
        if layer is not None and tensor.input_scale is not None:
            install(layer, tensor.input_scale)
            n_installed += 1
    return n_installed
