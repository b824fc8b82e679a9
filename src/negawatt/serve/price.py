"""`Price`: the joules behind a worker's CPU seconds, from a counter where there is one, else by the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from negawatt.energy import Energy
from negawatt.meter import ProcessMeter, station
from negawatt.meter.calibrated import power_here


@dataclass(frozen=True, slots=True)
class Spent:
    """What a worker spent over an interval; `dynamic` and `idle` add up to all of it.

    Attributes:
        dynamic: joules that its work added.
        idle: joules that the processors it kept busy would have drawn anyway.
    """

    dynamic: Energy
    idle: Energy


class Price(Protocol):
    """Prices the CPU seconds of one worker, interval after interval."""

    boundary: str

    def since_last(self, cpu_s: float) -> Spent:
        """Joules since the last call, or since this was made.

        Args:
            cpu_s: CPU seconds that the worker says it used meanwhile.
        """


class CpuTimePrice:
    """The model of last resort: joules in proportion to CPU time, estimated."""

    def __init__(self) -> None:
        self._power = power_here()[0]
        self.boundary: str = self._power.boundary

    def since_last(self, cpu_s: float) -> Spent:
        whole, idle = self._power.energy(cpu_s), self._power.idle(cpu_s)
        return Spent(_less(whole, idle), idle)


class CounterPrice:
    """What the machine's counters charge to the worker."""

    boundary = "chip"

    def __init__(self, pid: int) -> None:
        self._meter = ProcessMeter(pid)
        self._meter.start()
        self._before = Spent(Energy.zero(), Energy.zero())

    def since_last(self, cpu_s: float) -> Spent:
        measured = self._meter.read()
        self.boundary = measured.boundary
        if measured.idle.is_missing:  # the machine's idle power is unknown: none of it is called idle
            now = Spent(measured.energy, Energy.zero())
        else:
            now = Spent(_less(measured.energy, measured.idle), measured.idle)
        before, self._before = self._before, now
        return Spent(_less(now.dynamic, before.dynamic), _less(now.idle, before.idle))


def price_of(pid: int) -> Price:
    """The best price of a running worker's CPU seconds: counters of the processor, if any can be trusted."""
    trusted = station()
    counts = any(name.startswith("cpu") for name in trusted.totals())
    return CounterPrice(pid) if counts else CpuTimePrice()


def _less(whole: Energy, part: Energy) -> Energy:
    """The rest of a whole whose part has the same systematic error, so that part and rest add up to it."""
    if whole.is_missing or part.is_missing:
        return whole - part
    assert whole.value_j is not None and whole.low_j is not None and whole.high_j is not None
    assert part.value_j is not None and part.low_j is not None and part.high_j is not None
    value = whole.value_j - part.value_j
    low, high = whole.low_j - part.low_j, whole.high_j - part.high_j
    worst = max(whole.provenance, part.provenance)
    return Energy(value, min(low, high, value), max(low, high, value), worst, whole.reason)
