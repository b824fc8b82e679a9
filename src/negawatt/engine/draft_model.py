"""`DraftModel`: the small model that proposes, as settings name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.catalog.manifest import NAME as MANIFEST

KEPT = "draft"
"""Folder in an artifact in which its own draft lies, an artifact too, and its name in settings."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """Attributes:
    artifact: what proposes.
    weight_format: that it runs in.
    """

    artifact: Artifact
    weight_format: str

    @classmethod
    def open(cls, text: str, formats: Sequence[str], model: Artifact | None = None) -> DraftModel:
        """A model as `Settings.speculation` names it: ``MODEL``, or ``MODEL:FORMAT`` with one of `formats`.

        Args:
            model: that it proposes to. ``draft`` is then the draft that was kept inside it, if one was.

        Raises:
            NegawattError: as for `Artifact.open`.
        """
        name, weight_format = split(text, formats)
        if name == KEPT and model is not None and (model.path / KEPT / MANIFEST).is_file():
            return cls(Artifact.open(model.path / KEPT), weight_format)
        return cls(Artifact.open(name), weight_format)

    def anywhere(self, text: str, formats: Sequence[str]) -> str:
        """The `text` that it was opened by, so that it is found from every working folder."""
        name, _ = split(text, formats)
        place = Path(name).expanduser().absolute()
        return str(place) + text[len(name) :] if self.artifact.path == place else text


def split(text: str, formats: Sequence[str]) -> tuple[str, str]:
    """``MODEL:FORMAT`` as both; ``native`` where no format stands behind it."""
    name, _, last = text.rpartition(":")
    return (name, last) if name and last in formats else (text, "native")
