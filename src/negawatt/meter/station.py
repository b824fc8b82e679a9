"""`Station`: the sensors of this machine that can be trusted, read together.

One station serves every meter of a process, so that sensors are probed once and counters that
wrap are watched by one thread however many windows are open.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from negawatt.energy import Energy
from negawatt.errors import NegawattError
from negawatt.meter.accumulate import Accumulator, Total, window
from negawatt.meter.amdsmi import AmdSmiSensor
from negawatt.meter.battery import BatterySource
from negawatt.meter.calibrated import power_here
from negawatt.meter.cputime import CpuPower, this_cpu_power
from negawatt.meter.deadline import Timely
from negawatt.meter.hwmon import HwmonEnergySensor, HwmonPowerSource, JetsonPowerSource
from negawatt.meter.idle import IdlePower, load_idle
from negawatt.meter.nvml import NvmlPowerSource, NvmlSensor
from negawatt.meter.perf import PerfSensor
from negawatt.meter.power import Integrated
from negawatt.meter.powermetrics import PowermetricsSource
from negawatt.meter.process import MachineTime, asleep_s, machine_stat, machine_time
from negawatt.meter.rapl import RaplSensor
from negawatt.meter.sensor import Sensor, SensorStatus, probe

WATCH_S = 20.0
"""Seconds after which a quick sensor is read if no window did: a 262 kJ counter wraps in 131 s at 2 kW."""


def sensors() -> list[Sensor]:
    """Every hardware sensor that needs no configuration, best first."""
    found: list[Sensor] = [
        RaplSensor(),
        PerfSensor(),
        HwmonEnergySensor(),
        NvmlSensor(),
        Integrated(NvmlPowerSource()),
        AmdSmiSensor(),
        Integrated(HwmonPowerSource()),
        Integrated(JetsonPowerSource()),
        Integrated(BatterySource()),
    ]
    return [*found, Integrated(PowermetricsSource())] if sys.platform == "darwin" else found


class Snapshot(NamedTuple):
    """Everything a window needs to know about one of its ends.

    Attributes:
        at_s: monotonic time; that of a reading, where one was taken.
        totals: by component.
        stat: what the kernel said of the processors' times; see `time`.
        asleep_s: seconds that the machine was suspended since it started.
    """

    at_s: float
    totals: Mapping[str, Total]
    stat: bytes
    asleep_s: float = 0.0

    @property
    def time(self) -> MachineTime:
        """Of the machine's processors."""
        return machine_time(self.stat)


class Station:
    """Trusted sensors, read together.

    Sensors that are quick are read on the spot, with a deadline; those that are slow or must be
    sampled are polled by a thread each, so that no snapshot waits long for one that hangs.

    Args:
        candidates: sensors to probe, best first; of two that count one component, the first wins.
        power: the model's watts; by default those of this machine's processor.
        idle_power: what the machine draws at rest, where that has been measured.
    """

    def __init__(
        self,
        candidates: Sequence[Sensor] | None = None,
        power: CpuPower | None = None,
        idle_power: IdlePower | None = None,
    ) -> None:
        candidates = sensors() if candidates is None else candidates
        self.power = power or this_cpu_power()
        self.idle = idle_power
        self.statuses: list[SensorStatus] = probe(candidates) if candidates else []
        self.notes: tuple[str, ...] = ()
        self._accumulators: list[Accumulator] = []
        self._source: dict[str, int] = {}  # component -> position of the accumulator that counts it
        for sensor, status in zip(candidates, self.statuses, strict=True):
            if status.status == "ok":
                self.notes += sensor.notes
                for component in status.components:
                    self._source.setdefault(component, len(self._accumulators))
                self._accumulators.append(Accumulator(Timely(sensor) if sensor.polled_s is None else sensor))
            elif "no answer" not in status.reason:  # one that hangs holds what closing would wait for
                _close(sensor)
        self._closed = threading.Event()
        self._distrusted: set[tuple[int, str]] = set()
        for position, accumulator in enumerate(self._accumulators):
            # Read once now: a sensor that fails from here on is known by its components.
            seen = accumulator.update()
            self._distrusted |= {(position, name) for name in seen if name not in self._source}
            period_s = accumulator.sensor.polled_s or WATCH_S
            threading.Thread(
                target=self._poll,
                args=(accumulator, period_s),
                name=f"negawatt-{accumulator.sensor.name}",
                daemon=True,
            ).start()

    def totals(self) -> dict[str, Total]:
        """Joules of every trusted component so far: quick sensors read now, polled ones as last read."""
        totals: dict[str, Total] = {}
        for position, accumulator in enumerate(self._accumulators):
            quick = accumulator.sensor.polled_s is None
            read = (accumulator.update() if quick else accumulator.latest).items()
            totals |= {name: total for name, total in read if self._counts(position, name)}
        return totals

    def _counts(self, position: int, component: str) -> bool:
        """Whether a component is taken from this sensor: trusted, and not counted by a better one."""
        if (position, component) in self._distrusted:
            return False
        return self._source.get(component, position) == position

    def sensor(self, component: str) -> Sensor | None:
        """The sensor that a component is taken from, or None where none counts it."""
        position = self._source.get(component)
        if position is None:
            return None
        sensor = self._accumulators[position].sensor
        return sensor.sensor if isinstance(sensor, Timely) else sensor

    def snapshot(self) -> Snapshot:
        """The totals and the processors' times now."""
        begun_s = time.monotonic()
        totals = self.totals()
        # Whatever holds this thread up after the last reading (a pause of the garbage collector, say)
        # must not come between joules and time.
        at_s = max([total.at_s for total in totals.values() if total.at_s >= begun_s] or [time.monotonic()])
        return Snapshot(at_s, totals, machine_stat(), asleep_s())

    def spent(self, before: Snapshot, after: Snapshot) -> dict[str, Energy]:
        """Joules of every component of the machine between two snapshots."""
        return {
            name: window(total, after.totals[name], before.at_s, after.at_s)
            if name in after.totals
            else Energy.missing(f"{name} vanished")
            for name, total in before.totals.items()
        }

    def close(self) -> None:
        """Stop the threads and free what the sensors hold open."""
        self._closed.set()
        for accumulator in self._accumulators:
            _close(accumulator.sensor)

    def _poll(self, accumulator: Accumulator, period_s: float) -> None:
        while not self._closed.wait(period_s):
            accumulator.update()


def _close(sensor: Sensor) -> None:
    """Close a sensor; one that is lost may not even do that, and no one can mend it from here."""
    with suppress(Exception):
        sensor.close()


def this_station(named: Sequence[Sensor] = ()) -> Station:
    """A new station of this machine's sensors and those named, with its idle power and curve if known."""
    notes: tuple[str, ...] = ()
    idle_power = None
    try:
        idle_power = load_idle()
    except NegawattError as exc:  # what is measured must not fail because of the meter
        notes = (str(exc),)
    power, why = power_here()
    made = Station([*sensors(), *named], power, idle_power)
    asked_for = made.statuses[len(made.statuses) - len(named) :]
    made.notes += tuple(f"{s.name} is not used: {s.reason}" for s in asked_for if s.status != "ok")
    made.notes += (*notes, *filter(None, (why,)))
    return made


_shared: Station | None = None
_shared_lock = threading.Lock()


def station() -> Station:
    """The station of this process, made on first use (which probes the sensors for some 60 ms)."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = this_station()
        return _shared


def _forget() -> None:
    """In a forked child: threads and locks of the parent are not there."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
