"""``negawatt.json``: what a stored folder holds, where it came from, and the hash of every file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from negawatt.errors import ArtifactError
from negawatt.home import write_json

NAME = "negawatt.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Hash and length of one file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``negawatt.json``.

    Attributes:
        name: name of the thing.
        kind: ``model``, ``data`` or ``runtime``.
        source: where it comes from (``pypi:…``, ``npm:…``, ``hf:…``, ``file:…``, ``negawatt tune``).
        license: SPDX name or name of the terms; empty when unknown.
        files: relative path → hash and length, for every file but the manifest.
        formats: of a model: ``gguf``, ``checkpoint``, ``packed``.
        lineage: how it was made, oldest step first; each step is a JSON object with at least
            ``step`` and whatever reproduces it.
        notes: what a reader of results must know.
    """

    name: str
    kind: str
    source: str
    license: str
    files: Mapping[str, FileRecord]
    formats: tuple[str, ...] = ()
    lineage: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""
    schema: int = field(default=SCHEMA)

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, whole or not at all."""
        write_json(folder / NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a folder's manifest.

        Raises:
            ArtifactError: it is absent, damaged, written by a newer version, or names files
                outside the folder.
        """
        path = folder / NAME
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["schema"] > SCHEMA:
                raise ArtifactError(
                    f"{path} was written by a newer Negawatt (schema {data['schema']}); update it"
                )
            data["files"] = {name: FileRecord(**record) for name, record in data["files"].items()}
            data["lineage"] = tuple(data["lineage"])
            data["formats"] = tuple(data.get("formats", ()))
            manifest = cls(**data)
        except OSError as exc:
            raise ArtifactError(f"cannot read {path}: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ArtifactError(f"{path} is not a Negawatt manifest: {exc}") from exc
        for name in manifest.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ArtifactError(f"{path} names a file outside its folder: {name}")
        return manifest


PACKED_FILE = "packed.safetensors"
"""Quantized weights in Negawatt's own neutral form; no library takes it for a checkpoint."""


def formats_of(names: Iterable[str]) -> tuple[str, ...]:
    """The model formats that files of these names make up."""
    kinds = {".gguf": "gguf", ".safetensors": "checkpoint"}
    return tuple(
        sorted(
            {
                "packed" if name == PACKED_FILE else kinds[suffix]
                for name in names
                if (suffix := PurePosixPath(name).suffix) in kinds
            }
        )
    )
