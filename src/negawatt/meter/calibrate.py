"""Measuring what a machine draws at rest, and along its load."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from negawatt.energy import Energy, Provenance
from negawatt.errors import NegawattError, SensorError, UsageError
from negawatt.meter.curve import LoadStep, PowerCurve
from negawatt.meter.idle import IdlePower
from negawatt.meter.load import WORK, Load
from negawatt.meter.machine import fingerprint, usable_cores
from negawatt.meter.sensor import Boundary, Sensor
from negawatt.meter.station import Snapshot, Station

MOST_BUSY = 0.05
"""Share of the processors' time that may be busy for the machine to count as idle."""


def measure_idle(
    where: Station, duration_s: float = 30.0, progress: Callable[[float], None] = lambda done_s: None
) -> IdlePower:
    """Measure the machine at rest.

    Args:
        where: the sensors.
        duration_s: for how long; longer than every counter's refresh by far.
        progress: called about five times a second with the seconds that have passed.

    Raises:
        SensorError: no counter here can be trusted.
        NegawattError: the machine is busy.
    """
    before = where.snapshot()
    if not before.totals:
        raise SensorError(
            "idle power needs a counter, and none here can be trusted",
            remedy="negawatt doctor tells why; a wall plug or UPS can be named with --sensor",
        )
    while (done_s := time.monotonic() - before.at_s) < duration_s:
        progress(done_s)
        time.sleep(min(0.2, duration_s - done_s))
    after = where.snapshot()
    passed_s = after.at_s - before.at_s
    busy = (after.time.busy_s - before.time.busy_s) / (passed_s * (os.cpu_count() or 1))
    if busy > MOST_BUSY:
        raise _not_idle(busy)
    spent = where.spent(before, after)
    power = {name: energy.scaled(1 / passed_s) for name, energy in spent.items() if not energy.is_missing}
    return IdlePower(
        machine=fingerprint()["id"],
        measured=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        duration_s=passed_s,
        busy=busy,
        power=power,
    )


def _not_idle(busy: float) -> NegawattError:
    return NegawattError(
        f"the machine was {busy:.0%} busy, which is not idle (at most {MOST_BUSY:.0%}); "
        "end what is running and calibrate again"
    )


LEVELS = (0.05, 0.25, 0.5, 0.75, 1.0)
"""Loads that every kind of work is tried at."""

_SETTLE = 1 / 3
"""Part of every step that passes before it counts: clocks, fans and meters take a while to follow."""

Progress = Callable[[float, float, str], None]
"""Called with the seconds passed, those in all, and what is being done."""


def measure_curve(
    where: Station,
    seconds: float | None = None,
    *,
    named: Sequence[Sensor] = (),
    progress: Progress = lambda done_s, total_s, text: None,
) -> PowerCurve:
    """Apply load steps and fit this machine's power curve to what a trustworthy sensor says of them.

    Args:
        where: the sensors.
        seconds: for all steps together; by default as long as the sensor's refresh asks for, and
            never under 40.
        named: sensors that are to be fitted to if they can be trusted; by default the chips' own
            counters, or a meter of the whole machine where there are none.
        progress: told several times a second.

    Raises:
        SensorError: no sensor here can be trusted, or the one that could fails meanwhile.
        UsageError: `seconds` is too short for the sensor.
        NegawattError: the machine is busy, may be used in part only, or its power does not follow
            its load.
    """
    threads = os.cpu_count() or 1
    usable = usable_cores()
    if usable < 0.9 * threads:
        raise NegawattError(
            f"{usable:g} of {threads} processors may be used here, too few to load the machine; "
            "calibrate outside of the limit, then --export there and --import here"
        )
    target = _target(where, named)
    steps = _steps(where, target, threads, _step_s(where, target, seconds), progress)
    curve = PowerCurve(
        fingerprint(),
        threads,
        time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        target.source,
        target.boundary,
        target.covers,
        tuple(steps),
    )
    curve.check()
    return curve


@dataclass(frozen=True, slots=True)
class _Target:
    """What the curve is fitted to.

    Attributes:
        source: components whose watts add up.
        boundary: where they are counted.
        covers: what they hold.
        devices: components inside them that keep counters of their own, whose watts come off.
    """

    source: tuple[str, ...]
    boundary: Boundary
    covers: tuple[str, ...]
    devices: tuple[str, ...] = ()


def _target(where: Station, named: Sequence[Sensor]) -> _Target:
    """Choose the components to fit to.

    Raises:
        SensorError: there are none.
        UsageError: there are several meters of the whole machine.
    """
    counters = {n: t.counter for n, t in where.snapshot().totals.items()}
    whole = {
        n: c.boundary
        for n, c in counters.items()
        if not c.part_of and c.provenance is not Provenance.ESTIMATED  # a model tells nothing of this machine
    }
    chips = {n for n, boundary in whole.items() if boundary == "chip"}
    processors = tuple(sorted(n for n in chips if n.startswith("cpu/")))
    memory = tuple(sorted(n for n in chips if n.startswith("dram/")))
    outer = {n for n, boundary in whole.items() if boundary in ("host", "wall")}
    chosen = {n for n in outer if where.sensor(n) in named}
    if processors and not chosen:
        return _Target((*processors, *memory), "chip", ("cpu", "dram") if memory else ("cpu",))
    outer = chosen or outer
    if not outer:
        raise SensorError(
            "a power curve needs a meter to fit it to, and none here can be trusted: "
            "the published curves stay in use",
            remedy="negawatt doctor tells why; a wall plug or UPS can be named with --sensor, and a curve "
            "from a machine with this processor taken over with --import",
        )
    if len({id(where.sensor(n)) for n in outer}) > 1:
        raise UsageError(f"{' and '.join(sorted(outer))} both measure the whole machine; name one of them")
    source = tuple(sorted(outer))
    devices = tuple(sorted(chips - {*processors, *memory}))
    return _Target(source, whole[source[0]], ("cpu", "dram", "disk"), devices)


def _step_s(where: Station, target: _Target, seconds: float | None) -> float:
    """How long each step lasts.

    Raises:
        UsageError: `seconds` in all is too short for the sensor.
    """
    totals = where.snapshot().totals
    slow_s = 0.0
    for name in (*target.source, *target.devices):
        sensor = where.sensor(name)
        polled_s = sensor.polled_s if sensor is not None else None
        slow_s = max(slow_s, totals[name].counter.refresh_s + (polled_s or 0.0))
    count = len(steps_plan())
    if seconds is None:
        return max(1.5, 3 * slow_s)
    if seconds < (least_s := count * max(0.2, 2 * slow_s)):
        raise UsageError(
            f"{', '.join(target.source)} needs at least {math.ceil(least_s)} s for the load steps"
        )
    return seconds / count


def steps_plan() -> list[tuple[str, float]]:
    """Kinds of work and loads in an order that keeps drift apart from both, with rest in between."""
    plan = [(work, level) for work in WORK for level in LEVELS]
    order = np.random.default_rng(1).permutation(len(plan))  # the same every time
    plan = [plan[n] for n in order]
    half = len(plan) // 2
    rest = ("rest", 0.0)
    return [rest, *plan[:half], rest, *plan[half:], rest]


def _steps(
    where: Station, target: _Target, threads: int, step_s: float, progress: Progress
) -> list[LoadStep]:
    """Go through the plan; raise as soon as it is clear that the machine does something else."""
    plan = steps_plan()
    total_s = step_s * len(plan)
    steps: list[LoadStep] = []
    with Load(threads) as load:
        for work, level in plan:
            load.set(work, level)
            text = f"{work} {level:.0%}"
            _wait(step_s * _SETTLE, len(steps) * step_s, total_s, text, progress)
            before = where.snapshot()
            _wait(step_s * (1 - _SETTLE), (len(steps) + _SETTLE) * step_s, total_s, text, progress)
            steps.append(_step(where, target, work, level, before))
            if steps[0].load > MOST_BUSY:
                raise _not_idle(steps[0].load)
    return steps


def _wait(seconds: float, since_s: float, total_s: float, text: str, progress: Progress) -> None:
    begun_s = time.monotonic()
    while (done_s := time.monotonic() - begun_s) < seconds:
        progress(since_s + done_s, total_s, text)
        time.sleep(min(0.2, seconds - done_s))


def _step(where: Station, target: _Target, work: str, level: float, before: Snapshot) -> LoadStep:
    """What the sensors say of the time since `before`."""
    after = where.snapshot()
    passed_s = after.at_s - before.at_s
    spent = where.spent(before, after)
    energy = Energy.total(spent[n] for n in target.source) - Energy.total(spent[n] for n in target.devices)
    if energy.value_j is None:
        raise SensorError(f"the sensor failed while the machine was calibrated: {energy.reason}")
    busy = (after.time.busy_s - before.time.busy_s) / (passed_s * (os.cpu_count() or 1))
    return LoadStep(work, level, min(1.0, busy), max(0.0, energy.value_j / passed_s))
