"""`Source`: an artifact whose weights a pass reads one tensor at a time, and never writes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.artifact import Artifact, Tokenizer
from negawatt.artifact.packed_file import AnyTensor, read_packed
from negawatt.artifact.safetensors_file import read_headers, read_json
from negawatt.errors import ArtifactError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Source:
    """A model to read. Make one with `Source.of`.

    Attributes:
        name: for messages and the manifest of what is made from it.
        identity: hash over its content.
        folder: where its configuration and tokenizer files are.
        config: the content of config.json.
        tensors: every tensor by its name in a checkpoint; packed ones are dequantised when read.
    """

    name: str
    identity: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, AnyTensor]

    @classmethod
    def of(cls, artifact: Artifact) -> Source:
        """Read an artifact's headers; a GGUF file is turned into a checkpoint once, in the cache.

        Raises:
            ArtifactError: its files differ from its manifest, or it has no checkpoint form.
        """
        packed = "packed" in artifact.formats
        folder = artifact.path if packed else artifact.checkpoint()
        tensors = read_packed(folder) if packed else dict(read_headers(folder))
        return cls(artifact.name, artifact.sha256, folder, read_json(folder / "config.json"), tensors)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_checkpoint(self.folder)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in fp32, a copy.

        Raises:
            ArtifactError: it is not there, or holds NaN or infinite values.
        """
        import torch

        if name not in self.tensors:
            raise ArtifactError(f"{self.name} has no tensor {name}")
        values = torch.from_numpy(self.tensors[name].float32())
        if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
            raise ArtifactError(
                f"{self.name}: {name} holds NaN or infinite values; fetch or make the model again"
            )
        return values

    def as_stored(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """New values for a tensor, in the type in which the source stores it."""
        import torch

        kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        return values.to(kinds[self.tensors[name].dtype])
