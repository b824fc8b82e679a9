"""Keys take turns by work, priorities go first, and whoever leaves leaves nothing behind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from negawatt.serve.queue import FairQueue


class Item:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def filled(*asks: tuple[str, int, float]) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for number, (key, priority, cost) in enumerate(asks):
        queue.put(Item(f"{key}{number}"), key=key, priority=priority, cost=cost)
    return queue


def taken(queue: FairQueue[Item]) -> list[str]:
    found = []
    while (item := queue.take()) is not None:
        found.append(item.name)
    return found


def test_a_key_with_much_does_not_hold_up_one_with_little() -> None:
    queue = filled(*[("a", 0, 10.0)] * 5, ("b", 0, 10.0), ("b", 0, 10.0))
    assert taken(queue) == ["a0", "b5", "a1", "b6", "a2", "a3", "a4"]


def test_turns_are_by_work_and_not_by_number() -> None:
    queue = filled(("a", 0, 30.0), ("a", 0, 30.0), *[("b", 0, 10.0)] * 4)
    assert taken(queue) == ["a0", "b2", "b3", "b4", "a1", "b5"]


def test_higher_priority_goes_first_whatever_it_asks() -> None:
    queue = filled(("a", 0, 1.0), ("b", 0, 1.0), ("c", 2, 100.0), ("c", 2, 100.0))
    assert taken(queue) == ["c2", "c3", "a0", "b1"]


def test_one_that_comes_later_has_no_claim_to_the_past() -> None:
    queue = filled(*[("a", 0, 10.0)] * 6)
    for _ in range(3):
        queue.take()
    for number in range(3):
        queue.put(Item(f"b{number}"), key="b", priority=0, cost=10.0)
    order = taken(queue)
    assert order.index("b1") > order.index("a3")  # it does not get three turns at once


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 1),
            st.floats(0.5, 9),
            st.sampled_from(["put", "take", "drop"]),
        ),
        max_size=60,
    )
)
def test_everything_comes_out_once_or_is_taken_away(moves: list[tuple[str, int, float, str]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    inside: list[Item] = []
    per_key: dict[tuple[str, int], list[Item]] = {}
    for key, priority, cost, what in moves:
        if what == "put":
            item = Item(key)
            queue.put(item, key=key, priority=priority, cost=cost)
            inside.append(item)
            per_key.setdefault((key, priority), []).append(item)
        elif what == "drop" and inside:
            item = inside.pop(len(inside) // 2)
            assert queue.remove(item) and not queue.remove(item)
            next(line for line in per_key.values() if item in line).remove(item)
        elif what == "take":
            found = queue.take()
            assert (found is None) == (not inside)
            if found is not None:
                inside.remove(found)
                line = next(line for line in per_key.values() if found in line)
                assert line.pop(0) is found  # first come, first served within a key
        assert len(queue) == len(inside)
    while queue.take() is not None:
        inside.pop()
    assert not inside and queue.work == 0
