"""`Station`: the sensors of this machine that can be trusted, read together.

One station serves every meter of a process, so that sensors are probed once and counters that
wrap are watched by one thread however many windows are open.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from negawatt.energy import Energy
from negawatt.meter.accumulate import Accumulator, Total, window
from negawatt.meter.cputime import CpuPower, this_cpu_power
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.perf import PerfSensor
from negawatt.meter.process import MachineTime, machine_time
from negawatt.meter.rapl import RaplSensor
from negawatt.meter.sensor import Sensor, SensorStatus, probe

WATCH_S = 20.0
"""Seconds between two reads while nothing else reads: a 262 kJ counter wraps in 131 s at 2 kW."""


def sensors() -> list[Sensor]:
    """Every hardware sensor that needs no configuration, best first."""
    return [RaplSensor(), PerfSensor(), NvmlSensor()]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a window needs to know about one of its ends.

    Attributes:
        at_s: monotonic time.
        totals: by component.
        time: of the machine's processors.
    """

    at_s: float
    totals: Mapping[str, Total]
    time: MachineTime


class Station:
    """Trusted sensors, read together.

    Args:
        candidates: sensors to probe, best first; of two that count one component, the first wins.
        power: the model's watts; by default those of this machine's processor.
    """

    def __init__(self, candidates: Sequence[Sensor] | None = None, power: CpuPower | None = None) -> None:
        candidates = sensors() if candidates is None else candidates
        self.power = power or this_cpu_power()
        self.statuses: list[SensorStatus] = probe(candidates) if candidates else []
        self._accumulators: list[Accumulator] = []
        self._source: dict[str, int] = {}  # component -> position of the accumulator that counts it
        for sensor, status in zip(candidates, self.statuses, strict=True):
            if status.status == "ok":
                for component in status.components:
                    self._source.setdefault(component, len(self._accumulators))
                self._accumulators.append(Accumulator(sensor))
            else:
                sensor.close()
        for accumulator in self._accumulators:
            accumulator.update()  # so that one which fails from now on is known by its components
        self._watched = False

    def snapshot(self) -> Snapshot:
        """Read all trusted sensors and the processors' times now."""
        totals: dict[str, Total] = {}
        for position, accumulator in enumerate(self._accumulators):
            read = accumulator.update().items()
            totals |= {name: total for name, total in read if self._source.get(name, position) == position}
        if totals and not self._watched:
            self._watch()
        return Snapshot(time.monotonic(), totals, machine_time())

    def spent(self, before: Snapshot, after: Snapshot) -> dict[str, Energy]:
        """Joules of every component of the machine between two snapshots."""
        return {
            name: window(total, after.totals[name], before.at_s, after.at_s)
            if name in after.totals
            else Energy.missing(f"{name} vanished")
            for name, total in before.totals.items()
        }

    def _watch(self) -> None:
        self._watched = True
        threading.Thread(target=self._keep_reading, name="negawatt-watch", daemon=True).start()

    def _keep_reading(self) -> None:
        while True:
            time.sleep(WATCH_S)
            for accumulator in self._accumulators:
                accumulator.update()


_shared: Station | None = None
_shared_lock = threading.Lock()


def station() -> Station:
    """The station of this process, made on first use (which probes the sensors for some 60 ms)."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Station()
        return _shared


def _forget() -> None:
    """In a forked child: threads and locks of the parent are not there."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
