"""`GgufFile`: the header of a GGUF file, read with every count and length checked against the file.

The layout is version 2 and 3 of the GGUF specification (ggml repository, ``docs/gguf.md``). Only
little-endian files are read. Tensor data stays on disk until asked for.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.errors import ArtifactError, IntegrityError

MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_ARRAY = 1 << 24
"""More metadata fields, tensors or array elements than any real model has."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""GGML tensor type → name, weights in a block, bytes of a block."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies in the file.

    Attributes:
        name: GGUF name, such as ``blk.0.attn_q.weight``.
        shape: outermost dimension first, as NumPy has it (GGUF stores the reverse).
        type: name of the GGML type, such as ``Q4_1``.
        offset: bytes from the start of the file.
        n_bytes: length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of one GGUF file. Make one with `GgufFile.open`.

    Attributes:
        path: the file.
        metadata: key → value; arrays are lists.
        tensors: name → place, in file order.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read and check the header.

        Raises:
            IntegrityError: the file is shorter than its header promises, or the header is absurd.
            ArtifactError: it is no GGUF file, or cannot be read.
        """
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 24:
                    raise IntegrityError(f"{path} is no GGUF file: {size} bytes hold no header")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return _read(path, data, size)
        except OSError as exc:
            raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def key(self, name: str, default: Any = None) -> Any:
        """``ARCHITECTURE.name`` from the metadata.

        Raises:
            ArtifactError: it is absent and there is no default.
        """
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise ArtifactError(f"{self.path} states no {self.architecture}.{name}")
        return value

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes as they are stored: a read-only view of the file, shape ``(n_bytes,)``."""
        info = self.tensors[name]
        return np.memmap(self.path, np.uint8, "r", info.offset, (info.n_bytes,))

    def dequantized(self, name: str) -> NDArray[np.float32]:
        """A tensor's weights in fp32, in `TensorInfo.shape`.

        Raises:
            ArtifactError: nothing here can decode its type.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        data = self.raw(name)
        if info.type in ("F32", "F16"):
            return data.view("<f4" if info.type == "F32" else "<f2").astype(np.float32).reshape(info.shape)
        try:
            rows = data.reshape(math.prod(info.shape[:-1]), -1)
            return np.asarray(dequantize(rows, GGMLQuantizationType[info.type]), np.float32).reshape(
                info.shape
            )
        except NotImplementedError as exc:
            raise ArtifactError(f"{self.path}: nothing here can decode {info.type} of {name}") from exc


class _Cursor:
    """Reads forward through a mapped file and refuses to leave it."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def take(self, length: int, what: str) -> int:
        """Move on by `length` bytes and return where they start."""
        start = self.at
        if length > self.size - start:
            raise IntegrityError(f"{self.path} is cut off or damaged: it ends inside {what}")
        self.at += length
        return start

    def scalar(self, code: str, what: str) -> Any:
        layout = "<" + code
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout), what))[0]

    def count(self, limit: int, what: str) -> int:
        value = int(self.scalar("Q", what))
        if value > limit:
            raise IntegrityError(
                f"{self.path} is damaged: it claims {value:,} {what}, more than any model has"
            )
        return value

    def string(self, what: str) -> str:
        length = int(self.scalar("Q", what))
        start = self.take(length, what)
        return self.data[start : start + length].decode("utf-8", "surrogateescape")

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind != _ARRAY:
            raise IntegrityError(f"{self.path} is damaged: {what} has the unknown type {kind}")
        inner = int(self.scalar("I", what))
        length = self.count(MAX_ARRAY, f"elements of {what}")
        if inner == _STRING:
            return [self.string(what) for _ in range(length)]
        if inner not in _SCALARS:
            raise IntegrityError(f"{self.path} is damaged: {what} holds elements of the unknown type {inner}")
        layout = f"<{length}{_SCALARS[inner]}"
        return list(struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout), what)))


def _read(path: Path, data: mmap.mmap, size: int) -> GgufFile:
    cursor = _Cursor(path, data, size)
    if data[:4] != b"GGUF":
        raise ArtifactError(f"{path} is no GGUF file: it begins with {data[:4]!r} instead of b'GGUF'")
    cursor.at = 4
    version = int(cursor.scalar("I", "the header"))
    if version not in (2, 3):
        raise ArtifactError(f"{path} is GGUF version {version}; versions 2 and 3 (little-endian) are read")
    n_tensors = cursor.count(MAX_TENSORS, "tensors")
    n_fields = cursor.count(MAX_FIELDS, "metadata fields")
    metadata: dict[str, Any] = {}
    for number in range(n_fields):
        name = cursor.string(f"metadata field {number + 1}")
        metadata[name] = cursor.value(int(cursor.scalar("I", name)), name)
    infos = [_tensor(cursor, number) for number in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise IntegrityError(f"{path} is damaged: an alignment of {alignment} bytes is not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for info in infos:
        end = start + info.offset + info.n_bytes
        if end > size:
            raise IntegrityError(f"{path} is cut off: {info.name} ends at byte {end:,}, the file at {size:,}")
        tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start + info.offset, info.n_bytes)
    if len(tensors) != n_tensors or not metadata.get("general.architecture"):
        raise IntegrityError(f"{path} is damaged: a tensor appears twice, or no architecture is stated")
    return GgufFile(path, metadata, tensors)


def _tensor(cursor: _Cursor, number: int) -> TensorInfo:
    name = cursor.string(f"the name of tensor {number + 1}")
    n_dims = int(cursor.scalar("I", name))
    if not 1 <= n_dims <= 4:
        raise IntegrityError(f"{cursor.path} is damaged: {name} has {n_dims} dimensions")
    shape = tuple(cursor.count(1 << 40, f"rows of {name}") for _ in range(n_dims))[::-1]
    kind = int(cursor.scalar("I", name))
    offset = int(cursor.scalar("Q", name))
    if kind not in BLOCKS:
        raise ArtifactError(f"{cursor.path}: {name} has the tensor type {kind}, which is not known here")
    type_name, weights, length = BLOCKS[kind]
    if shape[-1] % weights:
        raise IntegrityError(f"{cursor.path} is damaged: {name} is {shape}, not whole blocks of {type_name}")
    return TensorInfo(name, shape, type_name, offset, math.prod(shape) // weights * length)
