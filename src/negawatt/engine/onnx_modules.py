"""Layers that become ONNX Runtime's own operators for weights of few bits when torch traces them.

``com.microsoft::MatMulNBits`` multiplies with a matrix whose rows are cut into blocks of neighbouring
inputs that share a scale; ``GatherBlockQuantized`` looks rows of such a matrix up. Weights are
``scale × (code − zero)``. A packed artifact's symmetric grids at 2, 4 and 8 bits are exactly that, so they
are carried over as they are; everything else is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.packed_file import AnyTensor, PackedTensor, pack
from negawatt.errors import EngineError

ACCURACY = 4
"""Level of the kernels: activations are rounded to 8 bits too, the only level with integer arithmetic."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How a matrix is rounded: bits of a code, inputs that share a scale, and whether zero lies mid-way."""

    bits: int
    group: int
    symmetric: bool = True

    @property
    def width(self) -> float:
        """Bits of a stored weight: its own, and its share of a scale of 32 bits and of a zero."""
        return self.bits + (32 if self.symmetric else 32 + self.bits) / self.group


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix of outputs × inputs in blocks.

    Attributes:
        codes: unsigned, shape ``(outputs, inputs)``.
        scales: fp32, shape ``(outputs, blocks)``.
        zeros: the code that stands for 0, shape ``(outputs, blocks)``; None where it lies mid-way.
        bits, group: of the grid.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    bits: int
    group: int


def rounded(weight: NDArray[np.float32], grid: Grid, *, name: str) -> Codes:
    """Round a matrix of outputs × inputs to nearest.

    On a symmetric grid the largest weight of a block is met exactly, whichever sign it has.

    Raises:
        EngineError: the group does not divide the inputs; `name` is said.
    """
    outputs, inputs = weight.shape
    if inputs % grid.group:
        raise EngineError(f"groups of {grid.group} do not divide the {inputs} inputs of {name}")
    blocks = weight.reshape(outputs, -1, grid.group)
    top = (1 << grid.bits) - 1
    if grid.symmetric:
        half = 1 << (grid.bits - 1)
        far = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
        scale = far / np.float32(-half)
        zero = np.full_like(scale, half)
    else:
        low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
        scale = ((high - low) / np.float32(top))[..., None]
        zero = np.rint(-low[..., None] / np.where(scale == 0, 1, scale))
    step = np.where(scale == 0, np.float32(1), scale)
    codes = np.clip(np.rint(blocks / step) + zero, 0, top).astype(np.uint8)
    zeros = None if grid.symmetric else zero[..., 0].astype(np.uint8)
    return Codes(
        codes.reshape(outputs, inputs), step[..., 0].astype(np.float32), zeros, grid.bits, grid.group
    )


def holds(tensor: PackedTensor) -> bool:
    """Whether the operators have a packed matrix's grid: groups must be powers of two."""
    power = tensor.group >= 16 and tensor.group & (tensor.group - 1) == 0
    return tensor.offsets is None and tensor.bits != 3 and power


def _of_packed(tensor: PackedTensor) -> Codes | None:
    """A packed matrix's own grid; None where the operators do not have it."""
    if not holds(tensor):
        return None
    return Codes(tensor.unpacked(), tensor.scales.float32(), None, tensor.bits, tensor.group)


def install(model: Any, grid: Grid | None, outer: Grid | None, packed: Mapping[str, AnyTensor]) -> int:
    """Replace a model's linear layers and its embedding; how many were replaced.

    Args:
        model: of transformers, in fp32.
        grid: what layers are rounded to that the artifact does not hold packed; None leaves them.
        outer: the same for the embedding and the head.
        packed: the artifact's tensors by name.

    Raises:
        EngineError: the grid does not fit a layer.
    """
    import torch

    replaced = 0
    prefix = f"{model.base_model_prefix}."
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    done: dict[int, Any] = {}
    for path, module in list(model.named_modules()):
        transposed = type(module).__name__ == "Conv1D"
        outermost = module is head or module is embedding
        if not transposed and not isinstance(module, torch.nn.Linear) and module is not embedding:
            continue
        key = id(module.weight)
        names = [f"{path}.weight", f"{path}.weight".removeprefix(prefix), f"{prefix}{path}.weight"]
        stored = next((packed[n] for n in names if n in packed), None)
        codes = _of_packed(stored) if isinstance(stored, PackedTensor) else None
        wanted = outer if outermost else grid
        if key not in done and codes is None and wanted is not None:
            weight = module.weight.detach().float().numpy()
            codes = rounded(weight.T if transposed else weight, wanted, name=path)
        if key not in done and codes is not None:
            done[key] = _Matrix(codes)
        if key in done:
            if module is embedding:
                made = _lookup(done[key], float(getattr(module, "embed_scale", 1.0)))  # Gemma's has one
            else:
                made = _linear(done[key], module.bias)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made)
            replaced += 1
    if tied and replaced:
        model.config.tie_word_embeddings = False  # the two layers share their codes by themselves
    return replaced


class _Matrix:
    """The tensors of a matrix as the operators take them, made once for all layers that share it."""

    def __init__(self, codes: Codes) -> None:
        import torch

        self.outputs, self.inputs = codes.codes.shape
        self.bits, self.group = codes.bits, codes.group
        n_blocks = self.inputs // self.group
        packed = pack(codes.codes, codes.bits).reshape(self.outputs, n_blocks, self.group * codes.bits // 8)
        self.codes = torch.from_numpy(np.ascontiguousarray(packed))
        self.scales = torch.from_numpy(np.ascontiguousarray(codes.scales))
        self.zeros = None
        if codes.zeros is not None:
            per_byte = 8 // codes.bits
            padded = np.pad(codes.zeros, ((0, 0), (0, -n_blocks % per_byte)))
            self.zeros = torch.from_numpy(np.ascontiguousarray(pack(padded, codes.bits)))


def _linear(matrix: _Matrix, bias: Any) -> Any:
    import torch

    facts = {
        "K": matrix.inputs, "N": matrix.outputs, "bits": matrix.bits, "block_size": matrix.group,
        "accuracy_level": ACCURACY,
    }  # fmt: skip

    class QuantizedLinear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            _register(self, matrix)
            self.bias = bias

        def forward(self, x: Any) -> Any:
            product = torch.onnx.ops.symbolic(
                "com.microsoft::MatMulNBits", (x, *_tensors(self)), facts, dtype=x.dtype,
                shape=(*x.shape[:-1], matrix.outputs), version=1,
            )  # fmt: skip
            return product if self.bias is None else product + self.bias

    return QuantizedLinear()


def _lookup(matrix: _Matrix, factor: float) -> Any:
    import torch

    facts = {"gather_axis": 0, "quantize_axis": 1, "bits": matrix.bits, "block_size": matrix.group}

    class QuantizedEmbedding(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            _register(self, matrix)

        def forward(self, tokens: Any) -> Any:
            codes, *rest = _tensors(self)
            rows = torch.onnx.ops.symbolic(
                "com.microsoft::GatherBlockQuantized",
                (codes.reshape(matrix.outputs, -1), tokens, *rest), facts, dtype=torch.float32,
                shape=(*tokens.shape, matrix.inputs), version=1,
            )  # fmt: skip
            return rows if factor == 1.0 else rows * factor

    return QuantizedEmbedding()


def _register(module: Any, matrix: _Matrix) -> None:
    module.register_buffer("codes", matrix.codes)
    module.register_buffer("scales", matrix.scales)
    module.register_buffer("zeros", matrix.zeros)


def _tensors(module: Any) -> tuple[Any, ...]:
    found = (module.codes, module.scales, module.zeros)
    return found if module.zeros is not None else found[:2]
