"""`Sensor`: anything that tells how many joules have flowed since some moment in the past.

The seam is one method, `Sensor.read`. Everything else (wraps, resets, gaps, windows, attribution)
is done once, above it, for every sensor alike.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from negawatt.energy import Provenance
from negawatt.errors import SensorError

Boundary = Literal["chip", "host", "wall", "facility"]
"""Where energy is counted: at processors and memory, at the machine's own supply, at the socket,
or for the whole site with its cooling. Each contains the one before it."""


class SensorAbsent(SensorError):
    """This machine has no such sensor."""


class SensorDenied(SensorError):
    """The sensor is there and may not be read."""


class SensorDead(SensorError):
    """The sensor answers, but its counter never moves: what it reports is not energy."""


@dataclass(frozen=True, slots=True)
class Counter:
    """One cumulative energy counter, as it stood at one moment.

    Attributes:
        energy_j: joules since an arbitrary origin.
        range_j: the counter falls back to 0 on reaching this many joules; None if it never wraps.
        resolution_j: smallest step.
        refresh_s: longest time between two updates of the counter.
        boundary: what lies upstream of it.
        part_of: the component this one is contained in (its joules are not to be added again).
        band: the truth lies between these multiples of `energy_j`; (1, 1) for a counter whose
            only errors are resolution and refresh.
        doubt_j: joules by which `energy_j` may be off beyond the band, as a cumulative half-width
            (what may have happened between two samples of power).
        limit_w: no such component draws more; a step that implies more is a reset, not a wrap.
        provenance: measured by a counter, derived from samples of power, or estimated by a model.
    """

    energy_j: float
    range_j: float | None = None
    resolution_j: float = 0.0
    refresh_s: float = 0.0
    boundary: Boundary = "chip"
    part_of: str | None = None
    band: tuple[float, float] = (1.0, 1.0)
    doubt_j: float = 0.0
    limit_w: float = 2000.0
    provenance: Provenance = Provenance.MEASURED


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sensor said at one moment.

    Attributes:
        at_s: `time.monotonic` halfway through the read.
        counters: by component: ``cpu/0``, ``dram/0``, ``gpu/1``, ``host``, ``wall/desk``.
    """

    at_s: float
    counters: Mapping[str, Counter]


class Sensor(ABC):
    """A source of energy readings.

    `read` may be called from several threads, one call at a time. It returns at least one
    counter, and the same components for as long as the hardware stays plugged in.

    Attributes:
        name: what it is called.
        polled_s: seconds between readings by a thread in the background, for sensors that are slow
            to answer or must be sampled; None for those quick enough to be read on the spot.
        integrates: whether its counters advance with every reading, because they add up power;
            others stand still from one update of their source to the next.
    """

    name: str
    polled_s: float | None = None
    integrates: bool = False

    @abstractmethod
    def read(self) -> Reading:
        """Read all counters now.

        Raises:
            SensorAbsent: the machine has no such sensor.
            SensorDenied: it may not be read; ``remedy`` tells the command that would allow it.
            SensorError: it was there and now fails (vanished, timed out, answered nonsense).
        """

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that whoever reads the figures should know."""
        return ()

    def close(self) -> None:  # noqa: B027  (most sensors hold nothing open)
        """Free what the sensor holds open; it may be read again afterwards."""


@dataclass(frozen=True)
class SensorStatus:
    """Whether a sensor can be relied on here, and what to do if not.

    Attributes:
        name: the sensor's name.
        status: ``ok``, ``dead`` (answers, never moves), ``denied`` or ``absent``.
        reason: what was seen.
        remedy: what the user can do; empty when nothing can be done or needs to be.
        components: what it measures, when it is ok.
    """

    name: str
    status: Literal["ok", "dead", "denied", "absent"]
    reason: str = ""
    remedy: str = ""
    components: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "remedy": self.remedy,
            "components": list(self.components),
        }


def probe(sensors: Sequence[Sensor], *, busy_s: float = 0.06) -> list[SensorStatus]:
    """Read every sensor before and after keeping a core busy, and judge each.

    A counter of energy cannot stand still while CPU time passes, so one that does is ``dead``,
    whatever it reads. All sensors are judged over one common stretch: `busy_s` of work and, for
    counters that need it, rest until twice their refresh has passed. Counters that refresh more
    slowly than once a second are taken on trust. A sensor that does not answer within
    `DEADLINE_S` is ``dead`` too.
    """
    before = [_try(sensor) for sensor in sensors]
    readings = [(s, r) for s, r in zip(sensors, before, strict=True) if isinstance(r, Reading)]
    until_s = time.monotonic() + busy_s
    while readings and time.monotonic() < until_s:
        sum(range(1000))
    steps = [c for s, r in readings for c in r.counters.values() if _steps(s, c) and not _on_trust(s, c)]
    rest_s = [2 * c.refresh_s - busy_s for c in steps]
    time.sleep(max([0.0, *rest_s]))
    return [
        _judge(sensor, first, _try(sensor) if isinstance(first, Reading) else first)
        for sensor, first in zip(sensors, before, strict=True)
    ]


def _steps(sensor: Sensor, counter: Counter) -> bool:
    return not sensor.integrates and counter.provenance is not Provenance.ESTIMATED


def _on_trust(sensor: Sensor, counter: Counter) -> bool:
    return _steps(sensor, counter) and counter.refresh_s > 1


def attempt(sensor: Sensor) -> Reading | SensorError:
    """Read a sensor; whatever goes wrong becomes a `SensorError`, which is returned.

    What is being measured must not fail because of a sensor, be it one that breaks its contract.
    """
    try:
        reading = sensor.read()
        counters = reading.counters.items()
        if wrong := [name for name, counter in counters if not math.isfinite(counter.energy_j)]:
            return SensorError(f"{sensor.name} says {reading.counters[wrong[0]].energy_j} J of {wrong[0]}")
    except SensorError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001  (a bug in a sensor is a failed read, told as one)
        error = SensorError(f"{sensor.name} failed with {type(exc).__name__}: {exc}")
        error.__cause__ = exc
        return error
    return reading


DEADLINE_S = 10.0
"""A sensor that takes longer to answer is not waited for."""


def _try(sensor: Sensor) -> Reading | SensorError:
    """Read in a thread of its own, so that a sensor that hangs does not take the caller with it."""
    answers: queue.Queue[Reading | SensorError] = queue.Queue()

    threading.Thread(
        target=lambda: answers.put(attempt(sensor)), name=f"negawatt-probe-{sensor.name}", daemon=True
    ).start()
    try:
        return answers.get(timeout=DEADLINE_S)
    except queue.Empty:
        return SensorDead(f"no answer within {DEADLINE_S:g} s")


def _judge(sensor: Sensor, before: Reading | SensorError, after: Reading | SensorError) -> SensorStatus:
    for outcome in (after, before):
        if isinstance(outcome, SensorError):
            if isinstance(outcome, SensorDenied):
                return SensorStatus(sensor.name, "denied", str(outcome), outcome.remedy)
            if isinstance(outcome, SensorDead):
                return SensorStatus(sensor.name, "dead", str(outcome), outcome.remedy)
            return SensorStatus(sensor.name, "absent", str(outcome), outcome.remedy)
    assert isinstance(before, Reading) and isinstance(after, Reading)
    slow = [n for n, c in after.counters.items() if _on_trust(sensor, c)]
    moving = [
        name
        for name, counter in after.counters.items()
        if name in before.counters and counter.energy_j != before.counters[name].energy_j
    ]
    alive = tuple(n for n in after.counters if n in moving or n in slow)
    if not alive:
        stood = ", ".join(f"{n} at {c.energy_j:.3f} J" for n, c in after.counters.items())
        reason = f"the counter did not move while CPU time passed ({stood})"
        return SensorStatus(sensor.name, "dead", reason, "none: the hardware or its host does not feed it")
    reason = "; ".join(("reads " + ", ".join(alive), *sensor.notes))
    if still := [n for n in after.counters if n not in alive]:
        reason += f"; {', '.join(still)} did not move and is not trusted"
    return SensorStatus(sensor.name, "ok", reason, "", alive)
