"""`Step`: a rate that holds for a while; intensities and prices over time are lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from negawatt.carbon.amount import Factor
from negawatt.errors import NegawattError, UsageError


@dataclass(frozen=True, slots=True)
class Step:
    """A rate between two moments.

    Attributes:
        start, end: with time zones; the end is not part of it.
        rate: what holds meanwhile.
    """

    start: datetime
    end: datetime
    rate: Factor

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("a step's start and end need time zones")
        if self.end <= self.start:
            raise ValueError(f"a step ends after it starts, not {self.start} to {self.end}")

    def to_json(self) -> dict[str, Any]:
        return {"start": self.start.isoformat(), "end": self.end.isoformat(), **self.rate.to_json()}


def over(steps: Sequence[Step], start: datetime, end: datetime) -> Factor:
    """The rate that holds for work between two moments.

    The value is the mean over time: right when the power was even. When within the window the
    energy was spent is not known, so the interval reaches over every step that the window touches.

    Args:
        steps: of one unit, in any order.
        start, end: the window, with time zones. An empty one takes the step it lies in.

    Raises:
        NegawattError: no step covers some part of the window, or several do.
    """
    if end < start:
        raise UsageError(f"the window ends at {_said(end)}, before it starts at {_said(start)}")
    ordered = sorted(steps, key=lambda step: step.start)
    if start == end:
        touched = [step for step in ordered if step.start <= start < step.end]
    else:
        touched = [step for step in ordered if step.start < end and step.end > start]
    reached = start
    for step in touched:
        if step.start > reached:
            raise NegawattError(_gap(reached, step.start, steps))
        if step.start < reached and step is not touched[0]:
            raise NegawattError(f"two rates are given for {_said(step.start)}; keep one")
        reached = step.end
    if not touched or reached < end:
        raise NegawattError(_gap(reached, end, steps))
    rates = [step.rate for step in touched]
    lengths_s = [(min(step.end, end) - max(step.start, start)).total_seconds() for step in touched]
    whole_s = sum(lengths_s)
    shares = [length / whole_s for length in lengths_s] if whole_s else [1.0]
    low, high = min(rate.low for rate in rates), max(rate.high for rate in rates)
    value = sum(rate.value * share for rate, share in zip(rates, shares, strict=True))
    return Factor(
        min(max(value, low), high),  # shares may sum to 1 but for rounding
        low,
        high,
        rates[0].unit,
        max(rate.provenance for rate in rates),
        "; ".join(dict.fromkeys(rate.source for rate in rates)),
    )


def _gap(start: datetime, end: datetime, steps: Sequence[Step]) -> str:
    if not steps:
        return f"nothing is known between {_said(start)} and {_said(end)}"
    first, last = min(step.start for step in steps), max(step.end for step in steps)
    return (
        f"nothing is known between {_said(start)} and {_said(end)}; "
        f"what is there reaches from {_said(first)} to {_said(last)}"
    )


def _said(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
