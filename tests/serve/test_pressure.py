"""How long one would wait, and who is refused for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.engine import Settings
from negawatt.engine.batching import Part, Report
from negawatt.serve import Refused
from negawatt.serve.options import ModelOptions
from negawatt.serve.pressure import Pressure, refuse_if_crowded

RUNNING = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200)), min_size=1, max_size=8)


def learned(step_s: float = 0.02, sequences: int = 4) -> Pressure:
    """One that has seen steps of so many tokens being written."""
    pressure = Pressure()
    parts = tuple(Part(n, "decode", 1, 10) for n in range(sequences))
    for _ in range(400):
        pressure.step(Report(parts, wall_s=step_s))
    return pressure


def test_with_a_free_slot_nobody_waits_and_without_one_until_the_first_ends() -> None:
    pressure = learned()
    running = [(10, 50), (40, 50), (0, 50), (20, 50)]
    assert pressure.wait_s(3, 4, running[:3], 0.0) == 0.0
    assert pressure.wait_s(4, 4, running, 0.0) == pytest.approx(10 * 0.02, rel=0.01)
    assert pressure.wait_s(5, 4, running, 0.0) == pytest.approx(30 * 0.02, rel=0.01)


def test_answers_that_turn_out_short_make_waits_short() -> None:
    pressure = learned()
    running = [(0, 400)] * 4
    before = pressure.wait_s(4, 4, running, 0.0)
    for _ in range(100):
        pressure.answered(20)
    assert pressure.wait_s(4, 4, running, 0.0) == pytest.approx(20 * 0.02, rel=0.05)
    assert before > 5 * pressure.wait_s(4, 4, running, 0.0)
    longer = pressure.wait_s(4, 4, [(100, 400)] * 4, 0.0)
    assert longer == pytest.approx(10 * 0.02, rel=0.05), "one that is longer than usual is not nearly done"


@given(RUNNING, st.integers(0, 50), st.floats(0, 1e5))
def test_more_before_one_is_never_a_shorter_wait(
    running: list[tuple[int, int]], queued: int, work: float
) -> None:
    pressure, slots = Pressure(), len(running)
    each = pressure.wait_s(slots + queued, slots, running, work if queued else 0.0)
    assert each >= 0
    assert pressure.wait_s(slots - 1, slots, running, 0.0) == 0.0
    if queued + 1 < slots:
        assert pressure.wait_s(slots + queued + 1, slots, running, work) >= each


@pytest.mark.parametrize(
    ("limit", "wait_s", "queued", "allowed", "code"),
    [
        (10, 5.0, 3, 60.0, None),
        (10, 70.0, 3, 60.0, "overloaded"),
        (10, 5.0, 10, 60.0, "queue_full"),
        (10, 500.0, 3, None, None),
        (0, 0.0, 0, 60.0, None),
        (0, 0.1, 0, 60.0, "queue_full"),
        (10, 0.0, 0, 0.0, None),
        (10, 0.001, 0, 0.0, "overloaded"),
    ],
)
def test_who_would_wait_too_long_is_told_when_to_come_again(
    limit: int, wait_s: float, queued: int, allowed: float | None, code: str | None
) -> None:
    options = ModelOptions(Settings("llamacpp", batch=4), queue_limit=limit, wait_s=allowed)
    if code is None:
        refuse_if_crowded("small", options, wait_s, queued)
        return
    with pytest.raises(Refused, match="try again") as caught:
        refuse_if_crowded("small", options, wait_s, queued)
    assert (caught.value.status, caught.value.code) == (429, code)
    assert caught.value.retry_after_s is not None and 1.0 <= caught.value.retry_after_s <= 120.0
