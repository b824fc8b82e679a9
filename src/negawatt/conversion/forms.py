"""`Form`: a format that models are written in for other programs, and what it can hold."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import AnyTensor, PackedTensor, read_packed
from negawatt.conversion.runner import Reader, Speaker
from negawatt.conversion.sizes import Widths
from negawatt.errors import ArtifactError, UsageError

_MODULES = {
    "gguf": "negawatt.conversion.gguf:Gguf",
    "onnx": "negawatt.conversion.onnx:Onnx",
    "openvino": "negawatt.conversion.openvino:OpenVino",
    "safetensors": "negawatt.conversion.safetensors:Safetensors",
    "torch-export": "negawatt.conversion.torch_programs:TorchExport",
    "torchscript": "negawatt.conversion.torch_programs:TorchScript",
}
FORMS = tuple(sorted(_MODULES))


class Form(ABC):
    """One format.

    Attributes:
        name: as the command calls it.
        types: of the weights, what is meant without one first.
        aliases: other names of types.
        kinds: of ``decoder``, ``encoder`` and ``classifier``.
        notes: what a user of the result must know.
    """

    name: ClassVar[str]
    types: ClassVar[tuple[str, ...]]
    aliases: ClassVar[Mapping[str, str]] = {}
    kinds: ClassVar[tuple[str, ...]] = ("decoder", "encoder", "classifier")
    notes: ClassVar[tuple[str, ...]] = ()

    def refuse(self, artifact: Artifact, type: str, kind: str) -> None:
        """Refuse what the format cannot hold.

        Raises:
            ArtifactError: the sentence names it, and what can hold it.
        """
        if kind not in self.kinds:
            raise ArtifactError(
                f"{self.name} is written for {self.kinds[0]}s here, and {artifact.name} is "
                f"{'an' if kind == 'encoder' else 'a'} {kind}; "
                "export it as safetensors, onnx, openvino or torch-export"
            )

    @abstractmethod
    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        """Write the model's files into `folder`; `scratch` may be filled, and goes afterwards."""

    @abstractmethod
    def weight_files(self, folder: Path) -> list[Path]:
        """Of what was written, the files that hold the weights."""

    @abstractmethod
    def widths(self, artifact: Artifact, type: str, kind: str) -> Widths | int:
        """Bits that the type promises, or the bytes of all weights where it keeps them as they are."""

    @abstractmethod
    def speaker(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Speaker]:
        """The decoder that was written, loaded from `folder`."""

    def reader(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Reader]:
        """The encoder or classifier that was written, loaded from `folder`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Target:
    """A form, and one of its types."""

    form: Form
    type: str

    def __str__(self) -> str:
        return f"{self.form.name}:{self.type}"


def parse(text: str) -> Target:
    """``gguf``, ``onnx:int8``, … as a `Target`.

    Raises:
        UsageError: there is no such format, or it has no such type.
    """
    name, _, type = text.partition(":")
    if name not in _MODULES:
        raise UsageError(f"no format is called {name!r}; there are {', '.join(FORMS)}")
    module, _, attribute = _MODULES[name].partition(":")
    form: Form = getattr(importlib.import_module(module), attribute)()
    type = form.aliases.get(type, type) or form.types[0]
    if type not in form.types:
        raise UsageError(f"{name} has no type {type!r}; it has {', '.join([*form.types, *form.aliases])}")
    return Target(form, type)


def packed_matrices(artifact: Artifact) -> dict[str, AnyTensor]:
    """The tensors of a packed artifact by name; none of any other."""
    return read_packed(artifact.path) if "packed" in artifact.formats else {}


def bits_of(type: str) -> int:
    """Bits of a weight that a type's name says: 4 or 8, and 16 for every wider one."""
    if "4" in type and not type.startswith(("f", "n")):
        return 4
    return 8 if "8" in type and not type.startswith("f") else 16


def refuse_packed(artifact: Artifact, holds: str, fits: object, remedy: str) -> None:
    """Refuse packed or factored matrices that a form cannot keep.

    Args:
        holds: what the form is, for the sentence.
        fits: called with a `PackedTensor`; whether the form has its grid.
        remedy: what to do, for the sentence.
    """
    assert callable(fits)
    for name, tensor in packed_matrices(artifact).items():
        if isinstance(tensor, PackedTensor) and not fits(tensor):
            grid = "symmetric" if tensor.offsets is None else "asymmetric"
            raise ArtifactError(
                f"{holds} has no type for {name}: {tensor.bits} bits in {grid} groups of {tensor.group}; "
                f"{remedy}"
            )
