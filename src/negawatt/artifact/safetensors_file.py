"""The headers of a safetensors checkpoint, checked against the files before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negawatt.errors import ArtifactError, IntegrityError

MAX_HEADER_BYTES = 100_000_000
"""The limit that the format itself sets."""

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}  # fmt: skip
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        file: the file that holds it.
        shape: outermost dimension first.
        dtype: type as safetensors names it, such as ``F32``.
        offset: bytes from the start of the file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def itemsize(self) -> int:
        return _SIZES[self.dtype]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]

    def raw(self) -> NDArray[Any]:
        """The tensor as stored, a read-only view of the file; bfloat16 comes as ``uint16``.

        Raises:
            ArtifactError: it holds no floating-point numbers of 16 or 32 bits.
        """
        layout = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(self.dtype)
        if layout is None:
            raise ArtifactError(f"{self.file} holds {self.dtype} weights; F32, F16 and BF16 are converted")
        return np.memmap(self.file, layout, "r", self.offset, self.shape)

    def stored_bytes(self) -> NDArray[np.uint8]:
        """The tensor's bytes, a read-only view of the file, shape ``(n_bytes,)``."""
        return np.memmap(self.file, np.uint8, "r", self.offset, (self.n_bytes,))

    def float32(self) -> NDArray[np.float32]:
        """The tensor in fp32."""
        raw = self.raw()
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by name, from one or several safetensors files.

    Raises:
        ArtifactError: there are no safetensors (pickled weights are refused by name).
        IntegrityError: a header lies about its file, or the index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted({str(name) for name in _json(index)["weight_map"].values()})
        if any("/" in s or s.startswith("..") for s in shards):
            raise IntegrityError(f"{index} names a file outside its folder")
        files = [folder / shard for shard in shards]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_pickle(folder)
        raise ArtifactError(f"{folder} is no model: it holds neither safetensors nor a GGUF file")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(file))
    return tensors


class Row(NamedTuple):
    """A tensor to write: its name, type as safetensors names it, shape, and how to get its values."""

    name: str
    dtype: str
    shape: Sequence[int]
    values: Callable[[], NDArray[Any]]


def write_safetensors(target: Path, rows: Sequence[Row], metadata: Mapping[str, str] | None = None) -> None:
    """Stream tensors into one file (header, then data in order); one tensor is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for row in rows:
        length = math.prod(row.shape) * _SIZES[row.dtype]
        header[row.name] = {
            "dtype": row.dtype, "shape": list(row.shape), "data_offsets": [position, position + length],
        }  # fmt: skip
        position += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for row in rows:
            out.write(np.ascontiguousarray(row.values()).data)


def refuse_pickle(folder: Path) -> None:
    """Raise when the folder holds pickled weights, whose loading can run any program."""
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise ArtifactError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run any program when loaded; "
            "convert them to safetensors first"
        )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, by name.

    Raises:
        IntegrityError: the header lies about the file.
        ArtifactError: the file cannot be read.
    """
    header, start, size = _raw_header(file)
    try:
        return _checked(file, header, start, size)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise IntegrityError(f"{file} is damaged: its header does not describe tensors ({exc})") from exc


def read_metadata(file: Path) -> dict[str, str]:
    """The free text that the header of a safetensors file carries; empty when it carries none."""
    metadata = _raw_header(file)[0].get("__metadata__") or {}
    return {str(key): str(value) for key, value in metadata.items()}


def _raw_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header as JSON, where the data starts, and the length of the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise IntegrityError(
                    f"{file} is cut off or damaged: its header claims {length:,} bytes of {size:,}"
                )
            header = json.loads(stream.read(length))
    except OSError as exc:
        raise ArtifactError(f"cannot read {file}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise IntegrityError(f"{file} is damaged: its header is not JSON") from exc
    if not isinstance(header, dict):
        raise IntegrityError(f"{file} is damaged: its header is not a JSON object")
    return header, 8 + length, size


def _checked(file: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    extents = []
    for name, info in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(int(n) for n in info["shape"])
        begin, end = map(int, info["data_offsets"])
        tensor = StoredTensor(file, shape, str(info["dtype"]), start + begin)
        if min(shape, default=0) < 0 or end - begin != tensor.n_bytes:
            raise IntegrityError(
                f"{file} is damaged: {name} is {shape} {tensor.dtype} in {end - begin:,} bytes"
            )
        extents.append((begin, end))
        tensors[name] = tensor
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise IntegrityError(f"{file} is damaged: its tensors overlap or leave gaps at byte {position:,}")
        position = end
    if start + position != size:
        raise IntegrityError(f"{file} should be {start + position:,} bytes by its header, but is {size:,}")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        ArtifactError: it is absent or not a JSON object.
    """
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ArtifactError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds no JSON object")
    return data
