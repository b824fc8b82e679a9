"""How many replicas a load is worth, and what a server is told of them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import UsageError
from negawatt.serve.config import ModelConfig, ServerConfig
from negawatt.serve.front import merged
from negawatt.serve.scaling import Load, ScalingPolicy, Worth, replicas_worth, waiting

WORTH = Worth(wait_s=2.0, waiting_w=20.0, least=1, most=8)
NO_LOAD = Load(0.0, 0.0, 4)


def test_those_that_wait_are_erlangs() -> None:
    assert waiting(1, 0.5) == pytest.approx(0.5)  # one slot: ρ² / (1 − ρ)
    assert waiting(2, 1.0) == pytest.approx(1 / 3)
    assert waiting(4, 0.0) == 0.0
    assert math.isinf(waiting(4, 4.0))


@given(st.integers(1, 64), st.floats(0, 63))
def test_more_slots_never_make_more_wait(slots: int, busy: float) -> None:
    assert waiting(slots + 1, busy) <= waiting(slots, busy)


def test_replicas_are_added_until_the_wait_is_within_its_limit() -> None:
    assert replicas_worth(2, 2, [Load(2.1, 9.0, 4)], None, WORTH) == 3
    assert replicas_worth(2, 2, [Load(60.0, 99.0, 4)], None, WORTH) == 4, "at most twice as many"
    assert replicas_worth(2, 4, [Load(4.0, 16.0, 4)], None, WORTH) == 4, "those that start are counted"
    assert replicas_worth(6, 6, [Load(60.0, 99.0, 4)], None, WORTH) == 8, "and no more than there may be"
    assert replicas_worth(1, 1, [NO_LOAD, Load(3.0, 5.0, 4)], None, WORTH) == 2, "for any of its models"


def test_one_that_draws_more_than_it_spares_is_taken_away() -> None:
    half = Load(0.0, 4.0, 4)  # without the second of two, all slots of the first would be taken
    assert replicas_worth(2, 2, [half], 1e9, WORTH) == 2
    some = Load(0.0, 2.0, 4)
    spared_w = 20.0 * (waiting(4, 2.0) - waiting(8, 2.0))
    assert replicas_worth(2, 2, [some], 1.01 * spared_w, WORTH) == 1
    assert replicas_worth(2, 2, [some], 0.99 * spared_w, WORTH) == 2
    assert replicas_worth(2, 2, [some, some], 1.01 * spared_w, WORTH) == 2, "both models are spared of"


def test_without_work_all_but_the_least_go_one_by_one() -> None:
    assert replicas_worth(5, 5, [NO_LOAD], 0.0, WORTH) == 4
    assert replicas_worth(1, 1, [NO_LOAD], 3.0, WORTH) == 1


def test_what_is_not_known_takes_no_replica_away() -> None:
    assert replicas_worth(3, 3, [NO_LOAD], None, WORTH) == 3
    assert replicas_worth(0, 3, [], None, WORTH) == 3


loads = st.builds(Load, st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 64))


@given(
    st.integers(0, 50), st.integers(1, 50), st.lists(loads, max_size=3), st.none() | st.floats(0, 1e6),
    st.floats(0, 100), st.floats(0, 1e4), st.integers(1, 9), st.integers(9, 99),
)  # fmt: skip
def test_the_count_is_always_within_its_bounds(
    running: int, wanted: int, found: list[Load], idle_w: float | None, wait_s: float, waiting_w: float,
    least: int, most: int,
) -> None:  # fmt: skip
    count = replicas_worth(running, wanted, found, idle_w, Worth(wait_s, waiting_w, least, most))
    assert least <= count <= most
    if least <= wanted <= most:
        assert wanted - 1 <= count <= 2 * wanted


def policy_says(told: dict[str, dict[str, float]], running: int = 2) -> int:
    context: Any = SimpleNamespace(
        aggregated_metrics=told, current_num_replicas=running, target_num_replicas=running
    )
    policy = ScalingPolicy(0.5, wait_s=2.0, waiting_w=20.0, least=1, most=4)
    count, kept = policy(context)
    assert kept == {}
    return count


def test_the_policy_reads_what_replicas_tell() -> None:
    quiet = {
        "wait_s:m": {"a": 0.0, "b": 0.0},
        "busy:m": {"a": 0.0, "b": 0.0},
        "slots:m": {"a": 2.0, "b": 2.0},
    }
    assert policy_says({}) == 2
    assert policy_says(quiet) == 2, "how much they draw is not known"
    assert policy_says({**quiet, "idle_w": {"a": 0.0}}) == 1
    busy = {**quiet, "busy:m": {"a": 1.0, "b": 1.0}, "idle_w": {"a": 0.1, "b": 0.3}}
    assert policy_says(busy) == 2, "2 requests would fill the only replica's 2 slots"
    crowded = {**busy, "wait_s:m": {"a": 2.0, "b": 4.0}}
    assert policy_says(crowded) == 3


@pytest.mark.parametrize(
    ("text", "bounds"), [("1", (1, 1)), ("3", (3, 3)), ("1..4", (1, 4)), ("2..2", (2, 2))]
)
def test_replicas_are_a_number_or_two(text: str, bounds: tuple[int, int]) -> None:
    assert ServerConfig(replicas=text).replica_bounds == bounds


@pytest.mark.parametrize("text", ["", "0", "4..1", "1..", "a", "1..2..3", "-1", "0..2"])
def test_what_are_no_replicas_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="such as 2 or"):
        _ = ServerConfig(replicas=text).replica_bounds


def test_replicas_need_a_cluster_and_are_not_handed_over() -> None:
    one = (ModelConfig("any"),)
    with pytest.raises(UsageError, match="give its address"):
        ServerConfig(one, replicas="2").check()
    with pytest.raises(UsageError, match="handed over"):
        ServerConfig(one, ray="auto", handover="/tmp/x").check()
    with pytest.raises(UsageError, match="without keys"):
        ServerConfig(one, ray="auto", host="0.0.0.0", keys=False).check()


def test_pages_of_metrics_become_one_with_a_label() -> None:
    page = (
        '# HELP a_total A.\n# TYPE a_total counter\na_total{m="x"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    )
    assert list(merged({"r1": page, "r2": page}))[2:] == [
        "negawatt_replicas 2",
        *("# HELP a_total A.", "# TYPE a_total counter"),
        *('a_total{replica="r1",m="x"} 1.0', 'a_total{replica="r2",m="x"} 1.0'),
        *("# HELP b B.", "# TYPE b gauge", 'b{replica="r1"} 2.0', 'b{replica="r2"} 2.0'),
    ]
