"""`Candidate`: one way of running a model that a search may try: which model, made smaller how, run how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from negawatt.engine import Settings


@dataclass(frozen=True)
class Candidate:
    """A point of the search.

    Attributes:
        settings: how the engine runs it.
        passes: of `negawatt.compress`, in the order in which they are applied, each as on the command
            line (``rtn:bits=4``) and in the form that `str` of the pass gives.
        model: name of the model where it is another than the one that the baseline runs.
    """

    settings: Settings
    passes: tuple[str, ...] = ()
    model: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The passes without their parameters."""
        return tuple(each.partition(":")[0] for each in self.passes)

    @property
    def making(self) -> tuple[str, tuple[str, ...]]:
        """What its weights depend on: candidates that agree in it run one artifact."""
        return self.model, self.passes

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What the numbers of its answers depend on; see `Settings.arithmetic`."""
        return (self.model, *self.passes, *self.settings.arithmetic)

    def run_as(self, **changes: Any) -> Candidate:
        """The same weights with some settings changed."""
        return replace(self, settings=self.settings.replace(**changes))

    def to_json(self) -> dict[str, Any]:
        """``model`` is null for the model that the baseline runs."""
        return {
            "settings": self.settings.to_json(),
            "model": self.model or None,
            "passes": list(self.passes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Read back what `to_json` wrote, or a record of a time when there were only settings.

        Raises:
            UsageError: a setting is unknown or has an impossible value.
        """
        passes = tuple(str(each) for each in data.get("passes") or ())
        return cls(Settings.from_json(data["settings"]), passes, str(data.get("model") or ""))

    def __str__(self) -> str:
        """Short form for tables, such as ``rtn:bits=4 → llamacpp · native · 1 thread · batch 1``."""
        made = " + ".join(filter(None, (self.model, *self.passes)))
        return f"{made} → {self.settings}" if made else str(self.settings)
