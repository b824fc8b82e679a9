"""`Draft`: the artifact that a pass is making, kept on disk step by step.

A draft is a table of references: to tensors of the source, untouched on disk, and to tensors that a
step has written. It lies in a run folder (see `negawatt.run`): every step is a safetensors file, and
a record with its hash that is appended once the file is durable. A killed pass finds its steps again
and goes on behind the last one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.packed_file import AnyTensor, description, pack, read_packed_file
from negawatt.artifact.safetensors_file import Row, StoredTensor, read_header, write_safetensors
from negawatt.catalog.hashing import sha256_of
from negawatt.compress.source import Source
from negawatt.energy import Energy
from negawatt.errors import IntegrityError, NegawattError
from negawatt.home import written_beside
from negawatt.meter import ProcessMeter
from negawatt.run import Run

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter"
"""Folder of a result in which an adapter lies that its weights do not hold."""
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
          "uint8": "U8"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized matrix in memory, to be packed when it is kept.

    Attributes:
        codes: uint8 below ``2^bits``, shape ``(out, in)``.
        scales, offsets: fp16, shape ``(out, in / group)``; no offsets on a symmetric grid.
        bits, group: of the grid.
        dtype: type that the matrix had, as safetensors names it.
        transposed: the checkpoint stores it as ``(in, out)``.
        input_scale: see `PackedTensor`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bits: int
    group: int
    dtype: str
    transposed: bool = False
    input_scale: float | None = None

    def facts(self) -> dict[str, Any]:
        inputs = {} if self.input_scale is None else {"input_scale": self.input_scale}
        return {"bits": self.bits, "group": self.group, "columns": int(self.codes.shape[1]),
                "dtype": self.dtype, "transposed": self.transposed, **inputs}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Factored:
    """A matrix in memory as the product of two.

    Attributes:
        left: shape ``(out, rank)``, in the type in which it is to be kept.
        right: shape ``(rank, in)``.
        dtype: type that the matrix had, as safetensors names it.
        transposed: the checkpoint stores it as ``(in, out)``.
    """

    left: torch.Tensor
    right: torch.Tensor
    dtype: str
    transposed: bool = False

    def facts(self) -> dict[str, Any]:
        return {"rank": int(self.left.shape[1]), "dtype": self.dtype, "transposed": self.transposed}


class Draft:
    """The result of a pass in the making.

    Attributes:
        config: content of the new config.json; a pass changes it in place.
        files: new content of other files by name (such as ``tokenizer.json``); None drops one.
        beside: safetensors files that lie beside the model by name, each with its tensors.
        kept_tokens: ids, in the source's numbering, of the only tokens that the result has, in their
            new order; None where the vocabulary stays. Text is renumbered by it for what follows.
        outcome: what the pass decided, as JSON for the lineage.
        notes: sentences that a reader of the result must know; they end in its manifest.
        tensors: every tensor of the result by name. A pass may rename and drop entries, which
            computes and copies nothing; new values come in with `keep`. Such edits are not kept
            over a kill: a pass makes them again from `facts`.
    """

    def __init__(self, source: Source, run: Run) -> None:
        """Begin, or go on with what is already in `run`.

        Raises:
            IntegrityError: a kept step is not what was written.
        """
        self._run = run
        self.config: dict[str, Any] = dict(source.config)
        self.files: dict[str, str | None] = {}
        self.beside: dict[str, Mapping[str, torch.Tensor]] = {}
        self.kept_tokens: list[int] | None = None
        self.outcome: dict[str, Any] = {}
        self.notes: list[str] = []
        self.tensors: dict[str, AnyTensor] = dict(source.tensors)
        self._steps: dict[str, dict[str, Any]] = {}
        for record in run.records("step"):
            self._take(record)
        self._carried = self._carry_of(list(self._steps.values())[-1]) if self._steps else {}
        self._meter = ProcessMeter(os.getpid())
        self._meter.start()

    # -- steps -----------------------------------------------------------------------------------

    def kept(self, step: str) -> dict[str, Any] | None:
        """The facts of a step that is done, or None when it is still to do."""
        return self._steps[step]["facts"] if step in self._steps else None

    @property
    def carried(self) -> Mapping[str, torch.Tensor]:
        """What the latest step handed on, such as hidden states; nothing before the first."""
        return self._carried

    def aside(self, step: str) -> dict[str, torch.Tensor]:
        """What a step laid aside, such as the answers of a teacher: no part of the result.

        Raises:
            IntegrityError: it is not what was written.
        """
        written = self._steps[step].get("aside")
        return self._tensors_of(written) if written else {}

    def keep(
        self,
        step: str,
        put: Mapping[str, torch.Tensor | Quantized | Factored] | None = None,
        *,
        drop: Iterable[str] = (),
        carry: Mapping[str, torch.Tensor] | None = None,
        aside: Mapping[str, torch.Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """End a step: what it made is durable when this returns.

        Args:
            step: its name, unique within the pass.
            put: new or replaced tensors of the result, by name.
            drop: names that leave the result.
            carry: replaces what earlier steps handed on to later ones; None hands on the same.
            aside: what any later step may read again, see `aside`.
            facts: a JSON object to remember.

        Raises:
            NegawattError: the disk is full.
        """
        number = len(self._steps)
        record: dict[str, Any] = {"step": step, "drop": sorted(drop), "facts": dict(facts or {})}
        previous = list(self._steps.values())[-1] if self._steps else {}
        record["put"] = self._written(f"step-{number:04d}.safetensors", put) if put else None
        carried = self._written(f"carry-{number:04d}.safetensors", carry) if carry else None
        record["carry"] = carried if carry is not None else previous.get("carry")
        record["aside"] = self._written(f"aside-{number:04d}.safetensors", aside) if aside else None
        record |= self._spent()
        self._run.append("step", record)
        self._take(record, verify=False)
        if carry is not None:
            self._carried = dict(carry)
            if old := previous.get("carry"):
                (self._run.path / old["file"]).unlink(missing_ok=True)

    def _written(self, name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
        rows: list[Row] = []
        packed = {}
        for key, value in tensors.items():
            if isinstance(value, Quantized | Factored):
                packed[key] = value.facts()
                rows += _parts(key, value)
            else:
                rows.append(_row(key, value))
        path = self._run.path / name
        with written_beside(path) as temporary:
            write_safetensors(temporary, rows, description(packed))
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        return {"file": name, "sha256": sha256_of(path)}

    def _take(self, record: dict[str, Any], *, verify: bool = True) -> None:
        """Enter what a step made into the table."""
        if put := record["put"]:
            self.tensors |= read_packed_file(self._file(put, verify))
        for name in record["drop"]:
            self.tensors.pop(name, None)
        self._steps[record["step"]] = record

    def _file(self, written: Mapping[str, str], verify: bool) -> Path:
        path = self._run.path / written["file"]
        if verify and (not path.is_file() or sha256_of(path) != written["sha256"]):
            raise IntegrityError(
                f"{path} is not what was written there; delete {self._run.path} to begin this pass again"
            )
        return path

    def _carry_of(self, record: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return self._tensors_of(record["carry"]) if record["carry"] else {}

    def _tensors_of(self, written: Mapping[str, str]) -> dict[str, torch.Tensor]:
        return {name: _loaded(t) for name, t in read_header(self._file(written, True)).items()}

    def write_beside(self, folder: Path) -> None:
        """Write the files of `files` and `beside` into a folder that holds the source's own."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                (folder / name).write_text(content, "utf-8")
        for name, tensors in self.beside.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(folder / name, [_row(*pair) for pair in sorted(tensors.items())])

    # -- the cost --------------------------------------------------------------------------------

    def _spent(self) -> dict[str, Any]:
        """Energy and CPU time since the last call; the meter goes on."""
        spent = self._meter.stop()
        self._meter.start()
        return {"energy": spent.energy.to_json(), "cpu_s": spent.cpu_s, "duration_s": spent.duration_s}

    def cost(self) -> dict[str, Any]:
        """Energy, CPU seconds and seconds of all steps, over kills, up to now.

        What a kill destroyed of an unfinished step is not in it.
        """
        parts = [*self._steps.values(), self._spent()]
        return {
            "energy": Energy.total(Energy.from_json(p["energy"]) for p in parts).to_json(),
            "cpu_s": sum(p["cpu_s"] for p in parts),
            "duration_s": sum(p["duration_s"] for p in parts),
        }

    def as_source(self, source: Source) -> Source:
        """The result so far, to be read like any model (its configuration files are the source's)."""
        return Source(source.name, source.identity, source.folder, self.config, self.tensors)


def _parts(name: str, value: Quantized | Factored) -> list[Row]:
    if isinstance(value, Factored):
        return [_row(f"{name}.left", value.left), _row(f"{name}.right", value.right)]
    codes: NDArray[np.uint8] = value.codes.numpy()
    parts = [_array(f"{name}.codes", "U8", pack(codes, value.bits))]
    parts.append(_row(f"{name}.scales", value.scales))
    if value.offsets is not None:
        parts.append(_row(f"{name}.offsets", value.offsets))
    return parts


def _row(name: str, value: torch.Tensor) -> Row:
    import torch

    kind = str(value.dtype).removeprefix("torch.")
    if kind not in _TYPES:
        raise NegawattError(f"{name} has the type {kind}, which is not kept")
    plain = value.detach().contiguous()
    array = plain.view(torch.uint16).numpy() if kind == "bfloat16" else plain.numpy()
    return _array(name, _TYPES[kind], array)


def _array(name: str, dtype: str, array: NDArray[Any]) -> Row:
    return Row(name, dtype, array.shape, lambda: array)


def _loaded(stored: StoredTensor) -> torch.Tensor:
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
             "I32": torch.int32, "U8": torch.uint8}  # fmt: skip
    if not stored.n_bytes:  # such as a layer that AdaLoRA left no rank
        return torch.empty(stored.shape, dtype=kinds[stored.dtype])
    flat = torch.frombuffer(bytearray(stored.stored_bytes()), dtype=kinds[stored.dtype])
    return flat.reshape(stored.shape)
