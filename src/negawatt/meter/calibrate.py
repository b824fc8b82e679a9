"""Measuring what a machine draws at rest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from negawatt.errors import NegawattError, SensorError
from negawatt.meter.idle import IdlePower
from negawatt.meter.machine import fingerprint
from negawatt.meter.station import Station

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
        raise NegawattError(
            f"the machine was {busy:.0%} busy, which is not idle (at most {MOST_BUSY:.0%}); "
            "end what is running and calibrate again"
        )
    spent = where.spent(before, after)
    power = {name: energy.scaled(1 / passed_s) for name, energy in spent.items() if not energy.is_missing}
    return IdlePower(
        machine=fingerprint()["id"],
        measured=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        duration_s=passed_s,
        busy=busy,
        power=power,
    )
