"""GGUF, in the types that llama.cpp runs well."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from negawatt.artifact import Artifact
from negawatt.artifact.factored_tensor import FactoredTensor
from negawatt.artifact.packed_file import PackedTensor
from negawatt.artifact.safetensors_file import read_headers
from negawatt.conversion.forms import Form, packed_matrices, refuse_packed
from negawatt.conversion.runner import Speaker, in_engine, put_weights
from negawatt.conversion.sizes import Widths
from negawatt.engine.llamacpp import LlamaCppBackend
from negawatt.errors import ArtifactError

_FILE = "model.gguf"
_BITS = {"q8_0": 8.5, "q4_1": 5.0, "q4_0": 4.5, "iq4_nl": 4.5, "f16": 16.0}
"""Bits of a weight, its share of the block's scale included."""
_GRIDS = {(4, True): 4.5, (4, False): 5.0, (8, True): 8.5}
"""Packed grids that GGUF has (bits, symmetric), at groups that are multiples of its blocks of 32."""


class Gguf(Form):
    """``native`` keeps precision and packed grids; every other type rounds all matrices to nearest."""

    name: ClassVar[str] = "gguf"
    types: ClassVar[tuple[str, ...]] = LlamaCppBackend.weight_formats
    kinds: ClassVar[tuple[str, ...]] = ("decoder",)

    def refuse(self, artifact: Artifact, type: str, kind: str) -> None:
        super().refuse(artifact, type, kind)
        if type != "native":
            return
        for name, tensor in packed_matrices(artifact).items():
            if isinstance(tensor, FactoredTensor):
                raise ArtifactError(
                    f"GGUF has no factored matrices, and {name} is one of rank {tensor.rank}; gguf:f16 "
                    "multiplies them out, onnx keeps them"
                )
        refuse_packed(artifact, "GGUF", _exact, "gguf:f16 writes such matrices in full")

    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        put_weights(artifact, "llamacpp", type, scratch, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        return [folder / _FILE]

    def widths(self, artifact: Artifact, type: str, kind: str) -> Widths | int:
        if type != "native":
            body, _, head = type.partition("-")
            return Widths(_BITS[body], _BITS["q8_0" if head else body])
        if "gguf" in artifact.formats:
            return artifact.weight_bytes
        stored = packed_matrices(artifact) or read_headers(artifact.checkpoint())
        bits = 0.0
        for tensor in stored.values():
            if isinstance(tensor, PackedTensor):
                width = _GRIDS[tensor.bits, tensor.offsets is None]
            else:
                width = 16 if len(tensor.shape) > 1 and tensor.dtype in ("F16", "BF16") else 32
            bits += math.prod(tensor.shape) * width
        return int(bits / 8)

    def speaker(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Speaker]:
        return in_engine(Artifact.open(folder / _FILE), "llamacpp", "native", prepared=folder / _FILE)


def _exact(tensor: PackedTensor) -> bool:
    known = (tensor.bits, tensor.offsets is None) in _GRIDS
    return known and tensor.group % 32 == 0 and not tensor.transposed
