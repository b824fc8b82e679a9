"""The machine's components over one interval: counters, and the model where there are none."""

from __future__ import annotations

from dataclasses import dataclass

from negawatt.energy import Energy
from negawatt.meter.accumulate import Total
from negawatt.meter.cputime import CpuPower
from negawatt.meter.station import Snapshot
from negawatt.monitor.sample import Component
from negawatt.monitor.split import Joules

MODEL = "cpu"
"""The component that the CPU-time model stands in for, where no processor has a counter."""


def triple(energy: Energy) -> Joules | None:
    """An energy's figures, or None when it is missing."""
    if energy.value_j is None or energy.low_j is None or energy.high_j is None:
        return None
    return Joules(energy.value_j, energy.low_j, energy.high_j)


@dataclass(frozen=True, slots=True)
class ModelPower:
    """The CPU-time model as watts of the whole machine.

    Attributes:
        idle_w: of one hardware thread that does nothing.
        dynamic_w: what a busy one draws beyond that.
        reason: the models that the band spans.
    """

    idle_w: Joules
    dynamic_w: Joules
    reason: str

    @classmethod
    def of(cls, power: CpuPower) -> ModelPower:
        busy, idle = triple(power.energy(1.0)), triple(power.idle(1.0))
        assert busy is not None and idle is not None
        value_w = busy.value_j - idle.value_j
        # No curve falls with load, so what load adds is never negative, whatever the two bands allow.
        low_w = min(value_w, max(0.0, busy.low_j - idle.high_j))
        return cls(idle, Joules(value_w, low_w, max(value_w, busy.high_j - idle.low_j)), power.reason)


def scaled(joules: Joules, factor: float) -> Joules:
    """Joules of `factor` seconds, from watts; `factor` is not negative."""
    return Joules(joules.value_j * factor, joules.low_j * factor, joules.high_j * factor)


def spent(before: Total, after: Total) -> tuple[Joules | None, str]:
    """What a counter advanced by, or None and why nothing is known.

    The interval holds one refresh and one resolution step. What an interval without reading spent
    shows in the next one that has a reading, so that nothing is lost in between.
    """
    if after.at_s <= before.at_s:
        return None, after.failure or "the sensor gave no reading in this interval"
    counter = after.counter
    covered_s = after.at_s - before.at_s
    value_j = after.value_j - before.value_j
    if value_j == 0 and after.moved_at_s <= before.at_s:
        return None, f"the counter did not move for {after.at_s - after.moved_at_s:.3g} s"
    power_w = max(value_j / max(covered_s, counter.refresh_s), before.power_w, after.power_w)
    edge_j = power_w * counter.refresh_s + counter.resolution_j
    low_j = min(value_j, max(0.0, after.low_j - before.low_j - edge_j))
    high_j = max(value_j, after.high_j - before.high_j + edge_j)
    reason = after.gap if after.gaps > before.gaps else after.failure
    return Joules(value_j, low_j, high_j), reason


def counted(first: Snapshot, before: Snapshot, after: Snapshot) -> list[Component]:
    """Every component that a sensor counts."""
    found = []
    for name, total in after.totals.items():
        origin = first.totals.get(name)
        if origin is None or name not in before.totals:
            continue  # seen for the first time: it is counted from here on
        joules, reason = spent(before.totals[name], total)
        whole = Joules(
            total.value_j - origin.value_j, total.low_j - origin.low_j, total.high_j - origin.high_j
        )
        found.append(
            Component(
                name,
                total.counter.boundary,
                total.counter.part_of,
                total.counter.provenance,
                joules,
                Joules(whole.value_j, min(whole.low_j, whole.value_j), max(whole.high_j, whole.value_j)),
                reason,
                failing=bool(total.failure),
                covered_s=total.at_s - before.totals[name].at_s,
            )
        )
    return found
