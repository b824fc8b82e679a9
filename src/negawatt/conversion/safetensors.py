"""Safetensors for transformers: loads where transformers is installed and Negawatt is not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from negawatt.artifact import Artifact
from negawatt.artifact.safetensors_file import read_headers
from negawatt.conversion import encoders
from negawatt.conversion.forms import Form
from negawatt.conversion.runner import CallReader, Reader, Speaker, in_engine


class Safetensors(Form):
    """Weights as they are; packed and factored ones written out in the type they had before."""

    name: ClassVar[str] = "safetensors"
    types: ClassVar[tuple[str, ...]] = ("native",)

    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        for file in artifact.checkpoint().iterdir():
            if file.suffix == ".safetensors" or file.name == "model.safetensors.index.json":
                shutil.copyfile(file, folder / file.name)

    def weight_files(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("*.safetensors"))

    def widths(self, artifact: Artifact, type: str, kind: str) -> int:
        return sum(t.n_bytes for t in read_headers(artifact.checkpoint()).values())

    def speaker(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Speaker]:
        return in_engine(Artifact.open(folder), "transformers", "fp32", prepared=folder)

    @contextmanager
    def reader(self, folder: Path, artifact: Artifact, type: str) -> Iterator[Reader]:
        yield CallReader(encoders.call(folder, encoders.kind_of(artifact)), encoders.info())
