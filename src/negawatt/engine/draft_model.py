"""`DraftModel`: the small model that proposes, as settings name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.artifact import Artifact


@dataclass(frozen=True, slots=True)
class DraftModel:
    """Attributes:
    artifact: what proposes.
    weight_format: that it runs in.
    """

    artifact: Artifact
    weight_format: str

    @classmethod
    def open(cls, text: str, formats: Sequence[str]) -> DraftModel:
        """A model as `Settings.draft` names it: ``MODEL``, or ``MODEL:FORMAT`` with one of `formats`.

        Raises:
            NegawattError: as for `Artifact.open`.
        """
        name, weight_format = split(text, formats)
        return cls(Artifact.open(name), weight_format)


def split(text: str, formats: Sequence[str]) -> tuple[str, str]:
    """``MODEL:FORMAT`` as both; ``native`` where no format stands behind it."""
    name, _, last = text.rpartition(":")
    return (name, last) if name and last in formats else (text, "native")
