"""Deferred work is never late and, with a forecast that holds, costs little more than the best possible."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from negawatt.carbon.shift import cheapest_mean
from negawatt.serve.deferral import MARGIN, Choice, Pending, choose

SLOT_S = 300.0


def simulate(
    works: list[tuple[float, float]], rates: list[float], told: list[float], believed: list[float]
) -> tuple[float, list[float]]:
    """Run jobs of (seconds, deadline) from 0 on by the rule; rate times seconds, and when each was done."""
    left = [work_s for work_s, _ in works]
    done, cost, now_s = [0.0] * len(works), 0.0, 0.0
    while any(s > 0 for s in left):
        slot = int(now_s // SLOT_S)
        pending = [Pending(s * told[i], works[i][1]) for i, s in enumerate(left)]
        if choose(now_s, pending, believed[slot:], SLOT_S).runs:
            room_s = SLOT_S
            for i in sorted(range(len(works)), key=lambda i: works[i][1]):
                spent_s = min(room_s, left[i])
                left[i] -= spent_s
                room_s -= spent_s
                cost += spent_s * rates[min(slot, len(rates) - 1)]
                if spent_s > 0 and left[i] <= 0:
                    done[i] = now_s + SLOT_S - room_s
        now_s += SLOT_S
        assert now_s < 1e6, "it never ends"
    return cost, done


@given(st.randoms(use_true_random=False), st.integers(1, 3), st.booleans())
def test_nothing_is_late_whatever_the_forecast_while_estimates_keep_to_the_margin(
    rng: random.Random, count: int, nonsense: bool
) -> None:
    """Deadlines that the rule could meet at first: all work with its margin, and two slots each."""
    rates = [rng.uniform(10, 500) for _ in range(80)]
    believed = [rng.uniform(10, 500) for _ in range(80)] if nonsense else rates
    works, told, need_s = [], [], 0.0
    for _ in range(count):
        work_s, off = rng.uniform(0.1, 12) * SLOT_S, rng.uniform(1 / MARGIN, 1.5)
        need_s += work_s * off * MARGIN + 2 * SLOT_S
        works.append((work_s, need_s + rng.uniform(0, 10) * SLOT_S))
        told.append(off)
    _, done = simulate(works, rates, told, believed)
    for (_, deadline_s), done_s in zip(works, done, strict=True):
        assert done_s <= deadline_s


def test_with_a_forecast_that_holds_it_is_near_the_best() -> None:
    rng = random.Random(5)
    here = best = 0.0
    for _ in range(40):
        phase = rng.uniform(0, 288)
        rates = [300 + 200 * ((slot + phase) % 288 / 288) + rng.uniform(0, 30) for slot in range(288)]
        work_s = rng.uniform(0.5, 6) * 3600
        cost, [done_s] = simulate([(work_s, 86400.0)], rates, [rng.uniform(0.8, 1.2)], rates)
        assert done_s <= 86400
        here += cost
        best += cheapest_mean(rates, work_s / SLOT_S) * work_s
    assert 1.0 <= here / best + 1e-9 < 1.05


def test_it_says_why() -> None:
    day = [100.0] * 100
    assert choose(0, [], day, SLOT_S) == Choice(False, "nothing to do")
    assert choose(0, [Pending(600, 30_000)], [], SLOT_S) == Choice(True, "no forecast")
    assert choose(0, [Pending(600, 1200)], [*([500.0] * 2), *([1.0] * 2)], SLOT_S) == Choice(True, "deadline")
    assert choose(0, [Pending(600, 30_000)], [500.0, *day], SLOT_S) == Choice(False, "cheaper later")
    assert choose(0, [Pending(600, 30_000)], day, SLOT_S) == Choice(True, "cheap")
    assert choose(50_000, [Pending(600, 30_000)], day, SLOT_S) == Choice(True, "deadline"), "late already"
    assert choose(0, [Pending(600, 30_000)], [500.0, 400.0], SLOT_S).why == "cheaper later"
