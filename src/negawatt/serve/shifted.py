"""`Shifted`: what waiting was worth, told after the fact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.carbon import KWH_J
from negawatt.carbon.shift import cheapest_mean, mean
from negawatt.energy import Energy
from negawatt.errors import Infeasible
from negawatt.serve.batch import Batch, Slice
from negawatt.serve.grid import Grid


@dataclass(frozen=True, slots=True)
class Shifted:
    """Grams of a batch as it ran, beside two ways it did not run; all by what the grid then was.

    Attributes:
        energy: of its requests that were answered.
        work_s: seconds that it ran.
        grams: as it ran.
        grams_at_once: had it run without a pause when it came.
        grams_best: had it run in the cheapest slots of its window as far as that is over.
        seen_until_s: how far that is, in seconds since the epoch.
        reason: why grams are None.
    """

    energy: Energy
    work_s: float
    grams: float | None = None
    grams_at_once: float | None = None
    grams_best: float | None = None
    seen_until_s: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "energy": self.energy.to_json(),
            "work_s": self.work_s,
            "grams": self.grams,
            "grams_at_once": self.grams_at_once,
            "grams_best": self.grams_best,
            "seen_until": None if self.seen_until_s is None else int(self.seen_until_s),
            "reason": self.reason or None,
        }


def shifted(batch: Batch, slices: Sequence[Slice], grid: Grid, now_s: float, slot_s: float) -> Shifted:
    """Account for a batch. May wait for a service on the network.

    Joules are taken to be even over the time that it ran, in all three ways alike.
    """
    energy = Energy.total(part.energy for part in slices)
    work_s = math.fsum(part.end_s - part.start_s for part in slices)
    if not slices or energy.value_j is None:
        return Shifted(energy, work_s, reason="nothing ran yet" if not slices else energy.reason)
    end_s = max(min(now_s, batch.deadline_s), slices[-1].end_s)
    rates = grid.seen(batch.created_s, end_s + slot_s, slot_s)
    slots = len(rates)
    seen_s = batch.created_s + slots * slot_s
    if seen_s < slices[-1].end_s:
        return Shifted(energy, work_s, reason="the grid's intensity over the time that it ran is not known")
    kwh = energy.value_j / KWH_J
    work_slots = min(work_s / slot_s, float(slots))
    try:
        best = cheapest_mean(rates, work_slots)
    except Infeasible as exc:
        return Shifted(energy, work_s, reason=str(exc))
    here = math.fsum(_mean_between(rates, s.start_s - batch.created_s, s.end_s - batch.created_s, slot_s)
                     * (s.end_s - s.start_s) for s in slices) / work_s  # fmt: skip
    once = mean(rates, range(slots), work_slots)
    return Shifted(energy, work_s, kwh * here, kwh * once, kwh * best, min(seen_s, end_s))


def _mean_between(rates: Sequence[float], start_s: float, end_s: float, slot_s: float) -> float:
    total, at_s = 0.0, max(0.0, start_s)
    length_s = end_s - at_s
    while at_s < end_s - 1e-9:
        slot = min(int(at_s // slot_s + 1e-9), len(rates) - 1)
        until_s = min(end_s, (slot + 1) * slot_s) if slot < len(rates) - 1 else end_s
        total += rates[slot] * (until_s - at_s)
        at_s = until_s
    return total / length_s
