"""Counters that wrap, are reset, freeze, vanish or talk nonsense, turned into totals that only grow."""

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from negawatt import Provenance
from negawatt.errors import SensorError
from negawatt.meter import Counter, Reading, Sensor
from negawatt.meter.accumulate import Accumulator, Total, window

RANGE_J = 1000.0


class Script(Sensor):
    """Replays raw counter values at given moments; an exception in place of a value is raised."""

    name = "script"

    def __init__(self, readings: list[tuple[float, float | SensorError]], **counter: object) -> None:
        self.readings = iter(readings)
        self.counter = {"range_j": RANGE_J, "refresh_s": 0.001, "limit_w": 500.0, **counter}

    def read(self) -> Reading:
        at_s, value = next(self.readings)
        if isinstance(value, SensorError):
            raise value
        return Reading(at_s, {"cpu/0": Counter(value, **self.counter)})  # type: ignore[arg-type]


def totals(readings: list[tuple[float, float | SensorError]], **counter: object) -> list[Total]:
    accumulator = Accumulator(Script(readings, **counter))
    return [accumulator.update()["cpu/0"] for _ in readings]


@given(
    st.floats(0, RANGE_J - 1),
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.1, 199)), min_size=1, max_size=30),
)
def test_wraps_lose_nothing(origin: float, steps: list[tuple[float, float]]) -> None:
    """Steps of up to 1,000 J at up to 199 W: never more than one wrap apart."""
    now_s, spent_j = 0.0, 0.0
    readings: list[tuple[float, float | SensorError]] = [(0.0, origin)]
    for seconds, watts in steps:
        now_s += seconds
        spent_j += seconds * watts
        readings.append((now_s, (origin + spent_j) % RANGE_J))
    first, *_, last = totals(readings, limit_w=199.9)
    assert abs(last.value_j - first.value_j - spent_j) < 1e-6
    assert last.gaps == 0
    energy = window(first, last, 0.0, now_s)
    assert energy.provenance is Provenance.MEASURED
    assert energy.low_j <= spent_j <= energy.high_j


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_failed_reads_between_good_ones_cost_nothing(works: list[bool]) -> None:
    readings: list[tuple[float, float | SensorError]] = [(0.0, 0.0)]
    readings += [(n + 1.0, 10.0 * (n + 1) if ok else SensorError("busy")) for n, ok in enumerate(works)]
    readings.append((len(works) + 1.0, 10.0 * (len(works) + 1)))
    first, *_, last = totals(readings)
    assert last.value_j - first.value_j == 10.0 * (len(works) + 1)
    assert last.failure == ""


class HeldUp(Sensor):
    """A counter of 50 W that is looked at when a read begins; the read may take its time."""

    name = "held-up"

    def __init__(self, pauses_s: list[float]) -> None:
        self.pauses_s = iter(pauses_s)

    def read(self) -> Reading:
        begun_s = time.monotonic()
        time.sleep(next(self.pauses_s))
        at_s = (begun_s + time.monotonic()) / 2
        return Reading(at_s, {"cpu/0": Counter(50 * begun_s, range_j=1e9, refresh_s=0.001, limit_w=60.0)})


def test_a_read_that_was_held_up_does_not_pass_for_a_reset() -> None:
    accumulator = Accumulator(HeldUp([0.0, 0.3, 0.0, 0.0]))
    first, _, third, last = (accumulator.update()["cpu/0"] for _ in range(4))
    assert third.failure == last.failure == ""
    assert last.gaps == 0
    assert abs(last.value_j - first.value_j - 50 * (last.at_s - first.at_s)) < 2
    assert last.power_w < 200  # nobody believes what a moment seems to tell


def test_a_torn_read_is_not_a_wrap() -> None:
    """A counter at 900 J that once reads 9 J and then 910 J has not used a thousand joules."""
    *_, torn, after = totals([(0, 890), (1, 900), (2, 9), (3, 910)], limit_w=50.0)
    assert torn.failure
    assert after.value_j == 20
    assert after.gaps == 0


def test_a_failed_read_taken_for_zero_would_be_a_wrap_and_is_not() -> None:
    first, _, last = totals([(0, 600), (1, 0), (2, 640)], limit_w=100.0)
    assert last.value_j - first.value_j == 40


def test_a_reset_is_filled_in_and_said() -> None:
    """600 J, reset while unseen, then 10 J a second: the gap is filled with the power around it."""
    first, *_, last = totals([(0, 590), (1, 600), (2, 5), (3, 15)], limit_w=50.0)
    energy = window(first, last, 0, 3)
    assert energy.value_j is not None
    assert 29 <= energy.value_j <= 31
    assert energy.low_j is not None and energy.high_j is not None
    assert energy.low_j <= 20 <= energy.high_j
    assert energy.provenance is Provenance.DERIVED
    assert "reset" in energy.reason


def test_a_stretch_that_may_hide_a_wrap_says_so_in_its_interval() -> None:
    first, last = totals([(0, 0), (10, 400)], limit_w=500.0)
    energy = window(first, last, 0, 10)
    assert energy.high_j is not None
    assert energy.high_j >= 400 + 4 * RANGE_J  # up to 5,000 J may have flowed
    assert energy.provenance is Provenance.DERIVED
    assert "may have wrapped" in energy.reason


def test_a_counter_that_stands_still_is_missing_and_not_zero() -> None:
    first, last = totals([(0, 7), (1, 7)])
    energy = window(first, last, 0, 1)
    assert energy.is_missing
    assert "did not move" in energy.reason


def test_a_window_shorter_than_the_refresh_says_so() -> None:
    first, last = totals([(0, 7), (0.05, 7)], refresh_s=0.1)
    assert "refreshed every 0.1 s" in window(first, last, 0, 0.05).reason


@given(st.floats(0.01, 0.09), st.floats(0, 0.099), st.floats(1, 400))
def test_a_short_window_that_catches_one_refresh_holds_the_truth(
    duration_s: float, phase_s: float, power_w: float
) -> None:
    """A counter refreshed every 100 ms, seen through a window of 10 to 90 ms."""

    def shown(at_s: float) -> float:
        return power_w * 0.1 * ((at_s + phase_s) // 0.1)

    first, last = totals([(0, shown(0)), (duration_s, shown(duration_s))], refresh_s=0.1, range_j=None)
    energy = window(first, last, 0, duration_s)
    if not energy.is_missing:
        assert energy.low_j is not None and energy.high_j is not None
        assert energy.low_j <= power_w * duration_s * (1 + 1e-9)
        assert energy.high_j >= power_w * duration_s * (1 - 1e-9)


def test_a_source_that_fails_at_the_end_is_carried_on_and_widened() -> None:
    first, _, last = totals([(0, 0), (8, 80), (10, SensorError("timed out"))], range_j=None)
    energy = window(first, last, 0, 10)
    assert energy.value_j is not None and energy.low_j is not None and energy.high_j is not None
    assert abs(energy.value_j - 100) < 1e-9
    assert energy.low_j <= 80.1
    assert energy.high_j >= 120
    assert energy.reason == "timed out"


def test_a_source_that_fails_throughout_is_missing_with_its_reason() -> None:
    first, last = totals([(0, 0), (8, SensorError("the host went away"))])
    energy = window(first, last, 0, 8)
    assert energy.is_missing
    assert energy.reason == "the host went away"


@given(
    st.lists(
        st.one_of(st.floats(0, RANGE_J), st.just(SensorError("no answer"))), min_size=2, max_size=40
    ).filter(lambda values: not isinstance(values[0], SensorError))
)
def test_whatever_a_counter_says_totals_never_shrink(values: list[float | SensorError]) -> None:
    seen = totals([(float(n), value) for n, value in enumerate(values)])
    for before, after in pairwise(seen):
        assert after.value_j >= before.value_j
        assert after.high_j - before.high_j >= after.value_j - before.value_j - 1e-9
        assert after.low_j - before.low_j <= after.value_j - before.value_j + 1e-9
