"""Quantized weights in a neutral form: packed integers, scales and offsets in one safetensors file.

A folder with ``config.json``, the tokenizer's files and ``packed.safetensors``. A weight matrix
``NAME`` of `rows` outputs and `columns` inputs is stored as

* ``NAME.codes``, U8, ``(rows, ceil(columns × bits / 8))``: unsigned codes, each row a stream of bits,
  least significant bit first (so of two 4-bit codes the first is the low half of the byte);
* ``NAME.scales``, F16, ``(rows, columns / group)``;
* ``NAME.offsets``, F16, of the same shape, only where the grid is asymmetric.

A weight is ``scale × code + offset``, and without offsets ``scale × (code − 2^(bits−1))``. The header's
metadata holds, under the key ``negawatt``, a JSON object that says for every packed matrix its bits,
group, type before packing, whether the checkpoint stores it transposed (inputs × outputs), and, where
inputs are to be rounded too, their ``input_scale``: an input x becomes ``s · round(x / s)``, with
multiples from −128 to 127. A factored matrix is stored as ``NAME.left`` and ``NAME.right`` (see
`FactoredTensor`), and has a rank there. All other tensors are stored as they are in a checkpoint.
Exporters read nothing else.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.factored_tensor import FactoredTensor
from negawatt.artifact.pooling import copy_pooling_files
from negawatt.artifact.safetensors_file import (
    Row,
    StoredTensor,
    read_header,
    read_metadata,
    write_safetensors,
)
from negawatt.catalog.manifest import NAME, PACKED_FILE
from negawatt.errors import ArtifactError, IntegrityError
from negawatt.home import written_beside

SCHEMA = 1
BITS = (2, 3, 4, 8)
_KEY = "negawatt"
_LAYOUTS = {"F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One quantized matrix on disk.

    Attributes:
        codes, scales, offsets: where its parts lie; no offsets where the grid is symmetric.
        bits: of a code: 2, 3, 4 or 8.
        group: neighbouring inputs that share a scale.
        columns: inputs.
        dtype: type of the matrix before it was packed, as safetensors names it.
        transposed: the checkpoint stores it as inputs × outputs.
        input_scale: what the matrix is multiplied with is rounded to multiples of this, from −128 to
            127 of them; None where inputs stay as they are.
    """

    codes: StoredTensor
    scales: StoredTensor
    offsets: StoredTensor | None
    bits: int
    group: int
    columns: int
    dtype: str
    transposed: bool = False
    input_scale: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint stores it."""
        rows = self.codes.shape[0]
        return (self.columns, rows) if self.transposed else (rows, self.columns)

    @property
    def n_bytes(self) -> int:
        """Bytes of all its parts."""
        return sum(part.n_bytes for part in self.parts.values())

    @property
    def parts(self) -> dict[str, StoredTensor]:
        """Its tensors by the suffix of their names."""
        parts = {"codes": self.codes, "scales": self.scales}
        return parts if self.offsets is None else {**parts, "offsets": self.offsets}

    def unpacked(self) -> NDArray[np.uint8]:
        """The codes, shape ``(rows, columns)``."""
        return unpack(self.codes.stored_bytes().reshape(self.codes.shape), self.bits, self.columns)

    def float32(self) -> NDArray[np.float32]:
        """The weights in fp32, as the checkpoint stores them."""
        rows = self.codes.shape[0]
        codes = self.unpacked().astype(np.float32).reshape(rows, -1, self.group)
        scales = self.scales.float32()[..., None]
        if self.offsets is None:
            weight = (codes - np.float32(2 ** (self.bits - 1))) * scales
        else:
            weight = codes * scales + self.offsets.float32()[..., None]
        weight = weight.reshape(rows, self.columns)
        return np.ascontiguousarray(weight.T) if self.transposed else weight

    def facts(self) -> dict[str, Any]:
        """What the file's header says of it."""
        return {
            "bits": self.bits,
            "group": self.group,
            "columns": self.columns,
            "dtype": self.dtype,
            "transposed": self.transposed,
            **({} if self.input_scale is None else {"input_scale": self.input_scale}),
        }


AnyTensor = StoredTensor | PackedTensor | FactoredTensor


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes below ``2^bits``, shape ``(rows, columns)``, as a stream of bits a row."""
    if bits == 8:
        return codes
    if bits == 4 and codes.shape[1] % 2 == 0:
        return np.asarray(codes[:, ::2] | (codes[:, 1::2] << 4), np.uint8)
    planes = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(planes.reshape(codes.shape[0], -1), axis=1, bitorder="little")


def unpack(stream: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """Undo `pack`."""
    if bits == 8:
        return stream
    if bits == 4 and columns % 2 == 0:
        return np.stack([stream & 15, stream >> 4], axis=-1).reshape(len(stream), columns)
    planes = np.unpackbits(stream, axis=1, bitorder="little")[:, : columns * bits]
    planes = planes.reshape(len(stream), columns, bits)
    return np.packbits(planes, axis=-1, bitorder="little")[..., 0]


def read_packed(folder: Path) -> dict[str, AnyTensor]:
    """Every tensor of a packed artifact by its name in a checkpoint; packed ones as `PackedTensor`.

    Raises:
        IntegrityError: the header contradicts itself or the file.
        ArtifactError: there is no such file, or a newer version wrote it.
    """
    return read_packed_file(folder / PACKED_FILE)


def read_packed_file(file: Path) -> dict[str, AnyTensor]:
    """As `read_packed`, of one file."""
    plain: dict[str, AnyTensor] = dict(read_header(file))
    text = read_metadata(file).get(_KEY)
    if text is None:
        return plain
    try:
        described = json.loads(text)
        if described["schema"] > SCHEMA:
            raise ArtifactError(
                f"{file} was written by a newer Negawatt (schema {described['schema']}, this version "
                f"reads up to {SCHEMA}); update Negawatt"
            )
        return plain | {name: _taken(plain, name, facts) for name, facts in described["tensors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError(f"{file} is damaged: its description of packed weights fails ({exc})") from exc


def _taken(plain: dict[str, AnyTensor], name: str, facts: Mapping[str, Any]) -> AnyTensor:
    """Take the parts of one matrix out of `plain` and check that they fit each other."""
    if "rank" in facts:
        return FactoredTensor.of(
            {side: plain.pop(f"{name}.{side}", None) for side in ("left", "right")}, facts
        )
    parts = {part: plain.pop(f"{name}.{part}", None) for part in ("codes", "scales", "offsets")}
    codes, scales, offsets = parts["codes"], parts["scales"], parts["offsets"]
    if not isinstance(codes, StoredTensor) or not isinstance(scales, StoredTensor):
        raise ValueError(f"{name} lacks its codes or scales")
    if offsets is not None and not isinstance(offsets, StoredTensor):
        raise ValueError(f"{name} is described twice")
    packed = PackedTensor(
        codes, scales, offsets, int(facts["bits"]), int(facts["group"]), int(facts["columns"]),
        str(facts["dtype"]), bool(facts["transposed"]),
        float(facts["input_scale"]) if "input_scale" in facts else None,
    )  # fmt: skip
    rows = codes.shape[0]
    groups, rest = divmod(packed.columns, packed.group)
    fits = (
        packed.bits in BITS
        and rest == 0
        and (packed.input_scale is None or 0 < packed.input_scale < math.inf)
        and codes.dtype == "U8"
        and codes.shape == (rows, -(-packed.columns * packed.bits // 8))
        and all(t.shape == (rows, groups) and t.dtype == "F16" for t in (scales, offsets) if t is not None)
    )
    if not fits:
        raise ValueError(f"the parts of {name} do not fit each other")
    return packed


def rows_of(tensors: Mapping[str, AnyTensor]) -> tuple[list[Row], dict[str, str]]:
    """What to write, and the metadata beside it, so that `read_packed_file` reads `tensors` back."""
    rows, packed = [], {}
    for name, tensor in tensors.items():
        parts = {name: tensor} if isinstance(tensor, StoredTensor) else {
            f"{name}.{suffix}": part for suffix, part in tensor.parts.items()
        }  # fmt: skip
        rows += [Row(n, part.dtype, part.shape, part.stored_bytes) for n, part in parts.items()]
        if not isinstance(tensor, StoredTensor):
            packed[name] = tensor.facts()
    return rows, description(packed)


def description(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The metadata that describes packed matrices, by name; nothing when there are none."""
    return {_KEY: json.dumps({"schema": SCHEMA, "tensors": packed})} if packed else {}


def unpack_to_checkpoint(source: Path, target: Path) -> None:
    """Write the checkpoint folder `target` that a packed folder stands for, whole or not at all.

    Each matrix gets back the type it had before it was packed; transformers loads the folder.
    """
    rows = []
    for name, tensor in read_packed(source).items():
        if isinstance(tensor, StoredTensor):
            rows.append(Row(name, tensor.dtype, tensor.shape, tensor.stored_bytes))
        else:
            dense = functools.partial(as_stored, tensor.float32, tensor.dtype)
            rows.append(Row(name, tensor.dtype, tensor.shape, dense))
    with written_beside(target) as folder:
        folder.mkdir()
        write_safetensors(folder / "model.safetensors", rows)
        for file in source.iterdir():
            if file.is_file() and file.name not in (PACKED_FILE, NAME):
                shutil.copy2(file, folder / file.name)
        copy_pooling_files(source, folder, shutil.copy2)


def as_stored(values: Any, dtype: str) -> NDArray[Any]:
    """What `values()` gives in fp32, rounded to a type of safetensors; bfloat16 as ``uint16``."""
    dense: NDArray[np.float32] = values()
    if dtype == "BF16":
        bits = np.ascontiguousarray(dense).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return dense.astype(_LAYOUTS[dtype])
