"""Programs of torch: ``torch.export``'s, and TorchScript for what still loads only that.

Both are fp32, and hold a decoder's step or an encoder with the names and shapes of `negawatt.engine.traced`.
"""

from __future__ import annotations

import io
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from negawatt.artifact import Artifact
from negawatt.conversion import encoders
from negawatt.conversion.forms import Form
from negawatt.conversion.runner import Call, CallReader, ProgramSpeaker, Reader, Speaker, of_torch
from negawatt.conversion.sizes import Widths
from negawatt.engine import traced
from negawatt.engine.transformers import causal_lm
from negawatt.errors import EngineError, installed_version, require


def traced_form(artifact: Artifact, kind: str) -> traced.Traced:
    """An artifact in fp32 as a function of tensors."""
    if kind != "decoder":
        return encoders.program(artifact.checkpoint(), kind)
    return traced.decoder(causal_lm(artifact.checkpoint(), "fp32"))


@contextmanager
def _translated(form: str, function: traced.Traced) -> Iterator[None]:
    torch = require("torch", extra="transformers")
    try:
        with traced.quietly(), torch.inference_mode():
            yield
    except (RuntimeError, ValueError, TypeError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        model = type(function.module.model).__name__
        raise EngineError(f"{form} cannot write a {model}: {reason}") from exc


class _Program(Form):
    """What both have in common."""

    types: ClassVar[tuple[str, ...]] = ("fp32",)
    file: ClassVar[str]

    def weight_files(self, folder: Path) -> list[Path]:
        return [folder / self.file]

    def widths(self, artifact: Artifact, type: str, kind: str) -> Widths:
        return Widths(32, 32)

    def speaker(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Speaker]:
        return self._speaking(folder, artifact)

    @contextmanager
    def _speaking(self, folder: Path, artifact: Artifact) -> Iterator[Speaker]:
        shape = artifact.shape
        layers = [(shape.n_kv_heads, shape.head_dim)] * shape.n_layers
        yield ProgramSpeaker(self._loaded(folder / self.file), layers, self._info())

    @contextmanager
    def reader(self, folder: Path, artifact: Artifact, type: str) -> Iterator[Reader]:
        yield CallReader(of_torch(self._loaded(folder / self.file)), self._info())

    @abstractmethod
    def _loaded(self, path: Path) -> Call:
        """The program in `path` as a function of tensors."""

    def _info(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": installed_version("torch", extra="transformers"),
            "isa": require("torch", extra="transformers").backends.cpu.get_cpu_capability(),
        }


class TorchExport(_Program):
    """``model.pt2``, what ``torch.export.save`` writes: a graph in JSON and raw weights in a zip archive."""

    name: ClassVar[str] = "torch-export"
    file: ClassVar[str] = "model.pt2"

    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        torch = require("torch", extra="transformers")
        function = traced_form(artifact, kind)
        with _translated("torch.export", function):
            program = torch.export.export(function.module, function.example, dynamic_shapes=function.shapes)
            program.example_inputs = None  # they would be stored by pickle
            content = io.BytesIO()  # on a full disk torch's own writer of files ends the whole process
            torch.export.save(program, content)
        (folder / self.file).write_bytes(content.getbuffer())

    def _loaded(self, path: Path) -> Call:
        torch = require("torch", extra="transformers")
        with traced.quietly():
            module: Callable[..., Any] = torch.export.load(path).module()
        return module


class TorchScript(_Program):
    """``model.ts``, what ``torch.jit.trace`` makes."""

    name: ClassVar[str] = "torchscript"
    file: ClassVar[str] = "model.ts"
    notes: ClassVar[tuple[str, ...]] = (
        "TorchScript is legacy: torch itself advises torch.export instead; take it only for a program that "
        "loads nothing else",
    )

    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        torch = require("torch", extra="transformers")
        if not hasattr(torch.jit, "trace"):
            raise EngineError(f"torch {torch.__version__} no longer has torch.jit.trace; use torch-export")
        function = traced_form(artifact, kind)
        with _translated("torch.jit", function), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = io.BytesIO()
            torch.jit.save(torch.jit.trace(function.module, function.example, check_trace=False), content)
        (folder / self.file).write_bytes(content.getbuffer())

    def _loaded(self, path: Path) -> Call:
        torch = require("torch", extra="transformers")
        with traced.quietly():
            module: Callable[..., Any] = torch.jit.load(path)
        return module
