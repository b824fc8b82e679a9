"""The cheapest slots before a deadline, against trying every choice; and forecasts from the past alone."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.carbon import Factor, Step
from negawatt.carbon.forecast import DAYS, ahead, forecast
from negawatt.carbon.shift import Job, cheapest_mean, interruptible, mean, rates_of, shared, slack, solid
from negawatt.errors import Infeasible, NegawattError, UsageError

rates_lists = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=9)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@given(rates_lists, st.data())
def test_a_solid_job_takes_the_cheapest_window_the_earliest_of_equals(
    rates: list[float], data: st.DataObject
) -> None:
    slots = data.draw(st.integers(1, len(rates)))
    start = solid(rates, slots)
    sums = [sum(rates[s : s + slots]) for s in range(len(rates) - slots + 1)]
    assert sums[start] == min(sums)
    assert min(sums) not in sums[:start]


@given(rates_lists, st.data())
def test_an_interruptible_job_takes_the_cheapest_slots(rates: list[float], data: st.DataObject) -> None:
    slots = data.draw(st.integers(0, len(rates)))
    chosen = interruptible(rates, slots)
    assert list(chosen) == sorted(set(chosen)) and len(chosen) == slots
    best = min(sum(rates[s] for s in c) for c in itertools.combinations(range(len(rates)), slots))
    assert sum(rates[s] for s in chosen) == best
    if slots:
        assert best <= sum(rates[solid(rates, slots) :][:slots]), "interrupting cannot cost more"


@given(rates_lists, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4))
def test_jobs_that_share_a_machine_are_all_in_time_at_the_least_cost(
    rates: list[float], pairs: list[tuple[int, int]]
) -> None:
    jobs = [Job(slots, deadline) for slots, deadline in pairs]
    total = sum(job.slots for job in jobs)

    def in_time(chosen: tuple[int, ...]) -> bool:
        """Whether running the earliest deadline first in these slots is on time."""
        return all(
            sum(slot < deadline for slot in chosen) >= sum(j.slots for j in jobs if j.deadline <= deadline)
            for deadline in {job.deadline for job in jobs}
        )

    fitting = [c for c in itertools.combinations(range(len(rates)), total) if in_time(c)]
    if not fitting:
        with pytest.raises(Infeasible):
            shared(rates, jobs)
        return
    chosen = shared(rates, jobs)
    assert in_time(chosen)
    assert sum(rates[s] for s in chosen) == min(sum(rates[s] for s in c) for c in fitting)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=4), st.integers(0, 12))
def test_slack_is_how_long_everything_can_wait(pairs: list[tuple[int, int]], waits: int) -> None:
    jobs = [Job(slots, deadline) for slots, deadline in pairs]
    later = [Job(job.slots, max(0, job.deadline - waits)) for job in jobs]
    try:
        shared([1.0] * 16, later)
        possible = True
    except Infeasible:
        possible = False
    assert possible == (slack(jobs) >= waits)


def test_work_that_fills_no_slot_whole() -> None:
    rates = [5.0, 1.0, 3.0]
    assert mean(rates, (0, 1), 1.5) == pytest.approx((5 + 0.5 * 1) / 1.5)
    assert cheapest_mean(rates, 1.5) == pytest.approx((1 + 0.5 * 3) / 1.5)
    with pytest.raises(UsageError):
        mean(rates, (0,), 1.5)
    with pytest.raises(Infeasible):
        solid(rates, 4)


def steps_of(values: list[float], begin: datetime) -> list[Step]:
    rates = [Factor.estimated(v, v, v, "gCO2e/kWh", "test") for v in values]
    return [Step(begin + i * HOUR, begin + (i + 1) * HOUR, rate) for i, rate in enumerate(rates)]


def test_slots_are_means_of_the_steps_they_touch() -> None:
    steps = steps_of([100.0, 200.0, 300.0], NOON)
    half = timedelta(minutes=30)
    assert rates_of(steps, NOON + half, NOON + 3 * HOUR, 3600) == [150.0, 250.0]
    assert rates_of(steps, NOON, NOON + HOUR, 900) == [100.0] * 4
    with pytest.raises(NegawattError, match="nothing is known"):
        rates_of(steps, NOON + HOUR, NOON + 5 * HOUR, 3600)


def test_days_that_are_all_alike_are_foretold_exactly() -> None:
    day = [float(100 + (hour - 13) ** 2) for hour in range(24)]
    assert ahead(day * 5, 40) == pytest.approx((day * 2)[:40])
    assert ahead(day + day[:7], 20) == pytest.approx((day * 2)[7:27])


@given(st.lists(st.floats(0, 900), min_size=24, max_size=500), st.lists(st.floats(0, 900), max_size=30))
def test_a_forecast_knows_the_last_days_alone_and_is_never_below_0(
    past: list[float], older: list[float]
) -> None:
    told = ahead(past, 30)
    assert len(told) == 30 and min(told) >= 0 and all(map(math.isfinite, told))
    if len(past) >= DAYS * 24:
        assert ahead(older + past, 30) == told


def test_a_forecast_has_the_times_and_the_interval_of_what_was() -> None:
    begin = NOON - 50 * HOUR
    history = steps_of([float(value % 24 * 10) for value in range(52)], begin)
    found = forecast(history, NOON + HOUR / 2, NOON + 6 * HOUR)
    assert found[0].start == NOON and found[-1].end == NOON + 6 * HOUR
    for step in found:
        hour = int((step.start - begin) / HOUR) % 24
        assert step.rate.low <= hour * 10.0 <= step.rate.high
        assert "50 hours" in step.rate.source
    with pytest.raises(NegawattError, match="24 hours"):
        forecast(history[40:], NOON, NOON + HOUR)
    with pytest.raises(NegawattError, match="24 hours"):
        forecast([], NOON, NOON + HOUR)
