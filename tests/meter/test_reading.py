"""Reading a window that goes on, and the stages one is in."""

import os
import time

import pytest

from negawatt.errors import UsageError
from negawatt.meter import Meter, ProcessMeter, Station
from negawatt.meter.cputime import cpu_power
from negawatt.meter.meter import active_stages

BLIND = Station([], cpu_power("AMD EPYC 7763 64-Core Processor"))


def spin(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def test_reading_leaves_the_window_open_and_counts_from_its_start() -> None:
    meter = ProcessMeter(os.getpid(), BLIND)
    with pytest.raises(UsageError, match="not running"):
        meter.read()
    meter.start()
    spin(0.02)
    first = meter.read()
    spin(0.02)
    second, whole = meter.read(), meter.stop()
    assert 0.02 <= first.cpu_s < second.cpu_s <= whole.cpu_s
    assert first.energy.value_j < second.energy.value_j <= whole.energy.value_j
    with pytest.raises(UsageError, match="not running"):
        meter.read()


def test_the_active_stages_are_those_of_the_innermost_meter() -> None:
    assert active_stages() == ()
    with Meter(BLIND) as outer, outer.stage("train"):
        with outer.stage("evaluate"):
            assert active_stages() == ("train", "evaluate")
        with Meter(BLIND) as inner:
            assert active_stages() == ()
            with inner.stage("own"):
                assert active_stages() == ("own",)
        assert active_stages() == ("train",)
    assert active_stages() == ()
