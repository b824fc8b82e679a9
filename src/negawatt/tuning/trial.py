"""`Trial`: one candidate tried, as the search remembers it and the run records it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from negawatt.engine import Settings
from negawatt.errors import NegawattError, RunError
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.verdict import Constraints

QUALITY = "quality drop"
"""Name of the constraint on quality among a trial's violations."""


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        number: from 0; the baseline is 0.
        candidate: what was tried.
        state: ``complete`` (all requests measured), ``pruned`` (dropped early as too costly), or
            ``failed`` (the engine refused or died).
        cost: per generated token, in the unit of the search (`negawatt.tuning.cost`): joules, or CPU seconds
            divided by the reference load's at the time and multiplied by those at the start of the run; None
            when failed.
        reason: why it was pruned, failed, or breaks a constraint; empty otherwise.
        violations: names of the constraints that it breaks.
        figures: the rest of the record, as the report reads it.
    """

    number: int
    candidate: Candidate
    state: str
    cost: float | None
    reason: str = ""
    violations: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.candidate.settings

    @property
    def feasible(self) -> bool:
        return self.state == "complete" and not self.violations

    def checked(self, constraints: Constraints) -> Trial:
        """Latency and memory against their limits."""
        broken = constraints.violations(dict(self.figures)) if self.state == "complete" else {}
        if not broken:
            return self
        words = "; ".join(
            f"{name} {found:,.4g} exceeds {limit:,.4g}" for name, (found, limit) in broken.items()
        )
        figures = {**self.figures, "violated": {name: list(pair) for name, pair in broken.items()}}
        return replace(self, violations=tuple(broken), reason=words, figures=figures)

    def to_record(self, stage: str) -> dict[str, Any]:
        """A ``trial`` record of the run."""
        return {
            "number": self.number,
            **self.candidate.to_json(),
            "state": self.state,
            "stage": stage,
            "cost": self.cost,
            "reason": self.reason or None,
            "violations": list(self.violations),
            **self.figures,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trial:
        own = (
            "record", "number", "settings", "model", "passes", "cascade", "state", "stage", "cost", "reason",
            "violations",
        )  # fmt: skip
        return cls(
            int(record["number"]),
            Candidate.from_json(record),
            str(record["state"]),
            record["cost"],
            record["reason"] or "",
            tuple(record["violations"]),
            {k: v for k, v in record.items() if k not in own},
        )


def kept_trials(run: Run) -> Iterator[tuple[str, Trial]]:
    """The trials of a run in the order they were kept, each with its stage.

    Raises:
        RunError: one cannot be read.
    """
    for record in run.records("trial"):
        try:
            yield str(record.get("stage")), Trial.from_record(record)
        except (NegawattError, KeyError, TypeError, ValueError, AttributeError) as exc:
            file = run.path / "records.jsonl"
            raise RunError(f"{file} holds a trial that cannot be read: {exc!r}; use another folder") from exc


def difference_json(difference: Any) -> dict[str, Any]:
    """A paired difference as the report reads it."""
    names = ("mean", "low", "high", "drop", "upper_one_sided", "n", "changed", "confidence", "text")
    return {name: getattr(difference, name) for name in names}
