"""Drawing items: disjoint, complete, stratified, nested, and the same every time."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import UsageError
from negawatt.workload import ChooseItem, ClassifyItem, PerplexityItem, QualityItem, TrafficItem, Workload
from negawatt.workload.split import draw_order


def workload(answers: list[int], lengths: list[int]) -> Workload:
    quality: list[QualityItem] = [
        ChooseItem(f"q{i}", "c", ("w", "x", "y", "z"), answer)
        if answer < 4
        else ClassifyItem(f"q{i}", "p", ("no", "yes"), "yes")
        if answer == 4
        else PerplexityItem(f"q{i}", "t")
        for i, answer in enumerate(answers)
    ]
    traffic = tuple(TrafficItem(f"t{i}", "x" * n, 8) for i, n in enumerate(lengths))
    return Workload("w", "d", "s", "l", traffic, tuple(quality), {})


answer_lists = st.lists(st.integers(0, 5), min_size=2, max_size=80)
length_lists = st.lists(st.integers(1, 500), min_size=2, max_size=40)
seeds = st.integers(0, 2**32)


def stratum(item: QualityItem) -> tuple[str, object]:
    return item.kind, getattr(item, "answer", None)


@given(answer_lists, length_lists, st.floats(0.01, 0.99), seeds)
def test_a_split_is_disjoint_complete_and_repeatable(
    answers: list[int], lengths: list[int], share: float, seed: int
) -> None:
    whole = workload(answers, lengths)
    search, held_out = whole.split(share, seed)
    for part in ("traffic", "quality"):
        ours, theirs = getattr(search, part), getattr(held_out, part)
        everything = getattr(whole, part)
        assert ours
        assert theirs
        assert not {i.id for i in ours} & {i.id for i in theirs}
        assert sorted((*ours, *theirs), key=everything.index) == list(everything)
        assert abs(len(ours) - share * len(everything)) <= 1
    assert whole.split(share, seed) == (search, held_out)


@given(answer_lists, seeds, st.data())
def test_every_beginning_holds_each_stratum_in_proportion(
    answers: list[int], seed: int, data: st.DataObject
) -> None:
    whole = workload(answers, [])
    n = data.draw(st.integers(1, len(answers)))
    drawn = Counter(map(stratum, whole.subset(n, seed).quality))
    sizes = Counter(map(stratum, whole.quality))
    assert drawn.total() == n
    for name, size in sizes.items():
        # Each stratum is at most half an item off, and the count n settles within that for all of them.
        assert abs(drawn[name] - n * size / len(answers)) <= 0.5 + len(sizes) / 2


@given(answer_lists, seeds, st.data())
def test_subsets_of_one_seed_are_nested(answers: list[int], seed: int, data: st.DataObject) -> None:
    whole = workload(answers, [])
    small, large = sorted(data.draw(st.tuples(*[st.integers(1, 100)] * 2)))
    assert {i.id for i in whole.subset(small, seed).quality} <= {
        i.id for i in whole.subset(large, seed).quality
    }


@given(answer_lists, seeds, st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_order_of_the_file(
    answers: list[int], seed: int, random: object
) -> None:
    items = list(workload(answers, []).quality)
    shuffled = items.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw_order(items, seed) == draw_order(shuffled, seed)


def test_seeds_draw_different_items_and_all_of_them_in_the_end() -> None:
    whole = workload([0, 1] * 50, [])
    draws = [{i.id for i in whole.subset(20, seed).quality} for seed in range(40)]
    assert len(set(map(frozenset, draws))) == 40
    assert set.union(*draws) == {i.id for i in whole.quality}


def test_traffic_is_divided_by_length() -> None:
    whole = workload([], [10] * 10 + [100] * 10 + [200] * 10 + [400] * 10)
    search, _ = whole.split(0.5)
    assert Counter(len(str(i.prompt)) for i in search.traffic) == {10: 5, 100: 5, 200: 5, 400: 5}


def test_what_cannot_be_divided() -> None:
    whole = workload([0, 1], [5, 6])
    with pytest.raises(UsageError, match="must lie between 0 and 1, not 1"):
        whole.split(1.0)
    with pytest.raises(UsageError, match="the traffic of w has a single item"):
        dataclasses.replace(whole, traffic=whole.traffic[:1]).split(0.5)
    with pytest.raises(UsageError, match="at least 1 item, not 0"):
        whole.subset(0)
