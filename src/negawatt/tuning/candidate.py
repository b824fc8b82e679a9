"""`Candidate`: one way of running a model that a search may try: which model, made smaller how, run how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from negawatt.engine import Settings
from negawatt.errors import UsageError


def refuse_limits(settings: Settings, who: str) -> None:
    """
    Raises:
        UsageError: these settings hold the machine to limits, of whose saving CPU seconds tell nothing.
    """
    if settings.limits:
        raise UsageError(
            f"{who} runs with {settings.limits}, and a search goes by CPU seconds here, which cannot tell "
            "what that saves; search without, and compare by negawatt profile --power-cap or --clock"
        )


@dataclass(frozen=True)
class Escalation:
    """Whom the questions are passed on to that a candidate is not sure of.

    Attributes:
        threshold: margin in nats, see `negawatt.workload.margin`, below which a question is passed on.
        to: who answers then; it passes nothing on itself.
    """

    threshold: float
    to: Candidate


@dataclass(frozen=True)
class Candidate:
    """A point of the search.

    Attributes:
        settings: how the engine runs it.
        passes: of `negawatt.compress`, in the order in which they are applied, each as on the command
            line (``rtn:bits=4``) and in the form that `str` of the pass gives.
        model: name of the model where it is another than the one that the baseline runs.
        escalation: of a cascade; None where it answers everything itself.
    """

    settings: Settings
    passes: tuple[str, ...] = ()
    model: str = ""
    escalation: Escalation | None = None

    @property
    def parts(self) -> tuple[Candidate, ...]:
        """The single candidates in it, that which answers first before the other."""
        if self.escalation is None:
            return (self,)
        return replace(self, escalation=None), self.escalation.to

    @property
    def devices(self) -> tuple[str, ...]:
        """What it runs on, as in `Settings`."""
        return tuple(dict.fromkeys(each.settings.device for each in self.parts))

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
        own = (self.model, *self.passes, *self.settings.arithmetic)
        if self.escalation is None:
            return own
        return (*own, str(self.escalation.threshold), *self.escalation.to.arithmetic)

    def run_as(self, **changes: Any) -> Candidate:
        """The same weights with some settings changed."""
        return replace(self, settings=self.settings.replace(**changes))

    def to_json(self) -> dict[str, Any]:
        """``model`` is null for the model that the baseline runs; ``cascade`` is there only of a cascade."""
        own: dict[str, Any] = {
            "settings": self.settings.to_json(),
            "model": self.model or None,
            "passes": list(self.passes),
        }
        if self.escalation is not None:
            own["cascade"] = {"threshold": self.escalation.threshold, **self.escalation.to.to_json()}
        return own

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Read back what `to_json` wrote, or a record of a time when there were only settings.

        Raises:
            UsageError: a setting is unknown or has an impossible value.
        """
        passes = tuple(str(each) for each in data.get("passes") or ())
        after = data.get("cascade")
        escalation = Escalation(float(after["threshold"]), cls.from_json(after)) if after else None
        return cls(Settings.from_json(data["settings"]), passes, str(data.get("model") or ""), escalation)

    def __str__(self) -> str:
        """Short form for tables, such as ``rtn:bits=4 → llamacpp · native · 1 thread · batch 1``."""
        made = " + ".join(filter(None, (self.model, *self.passes)))
        own = f"{made} → {self.settings}" if made else str(self.settings)
        if self.escalation is None:
            return own
        after = self.escalation
        return f"{own}, and where its answer leads by less than {after.threshold:.3g} nats {after.to}"
