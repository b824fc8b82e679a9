"""The book over a cache never promises more than there is, and holds what the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.cells import Cells
from negawatt.engine.settings import Settings


class Shelf(Backend):
    """A double with no model: it only keeps what each slot holds, as a cache does."""

    name = "shelf"
    has_speculation = True
    ragged = True
    shares = True

    def __init__(self, slots: int) -> None:
        super().__init__(Settings(engine="shelf", batch=slots))
        self.held: list[list[int]] = [[] for _ in range(slots)]

    @classmethod
    def version(cls) -> str:
        return "1"

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        return artifact_path

    def load(self, path: Path) -> None:
        return

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        for chunk in chunks:
            self.held[chunk.slot] += list(chunk.tokens)
        return []

    def release(self, slot: int) -> None:
        self.held[slot] = []

    def truncate(self, slot: int, length: int) -> None:
        assert length <= len(self.held[slot])
        del self.held[slot][length:]

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.held[target] and source != target
        self.held[target] = self.held[source][:length]


class OwnShelf(Shelf):
    """Its slots share nothing."""

    shares = False


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(
    slots=st.integers(1, 4),
    capacity=st.integers(8, 40),
    sharing=st.booleans(),
    moves=st.lists(st.tuples(PROMPTS, st.integers(1, 6), st.integers(0, 3)), max_size=40),
)
def test_what_it_says_is_what_the_cache_holds(
    slots: int, capacity: int, sharing: bool, moves: list[tuple[list[int], int, int]]
) -> None:
    shelf = (Shelf if sharing else OwnShelf)(slots)
    cells = Cells(shelf, slots, capacity)
    live: dict[int, tuple[list[int], int]] = {}  # slot -> prompt, tokens still to come
    for prompt, answer, ending in moves:
        place = cells.place(prompt, len(prompt) + answer)
        if place is not None:
            assert place.slot not in live
            assert place.cached < len(prompt)
            assert shelf.held[place.slot] == prompt[: place.cached]
            rest = prompt[place.cached :]
            shelf.forward([Chunk(place.slot, rest)])
            cells.feed(place.slot, rest)
            live[place.slot] = (prompt, answer)
        assert cells.used + cells.promised <= capacity
        for slot, (text, left) in list(live.items())[: ending + 1]:
            assert shelf.held[slot][: len(text)] == text  # nobody else wrote or took there
            if left == 0 or ending == 3:
                cells.finish(slot)
                del live[slot]
            else:
                shelf.forward([Chunk(slot, [9])])
                cells.feed(slot, [9])
                live[slot] = (text, left - 1)
        assert cells.used + cells.promised <= capacity
        assert cells.live == len(live)
    for slot in live:
        cells.finish(slot)
    cells.forget()
    assert cells.used == 0 and not any(shelf.held)


def test_a_beginning_is_taken_from_a_live_sequence_and_counted_once() -> None:
    shelf = Shelf(2)
    cells = Cells(shelf, 2, 100)
    first = cells.place([1, 2, 3, 4], 10)
    assert first is not None and first.cached == 0
    shelf.forward([Chunk(first.slot, [1, 2, 3, 4])])
    cells.feed(first.slot, [1, 2, 3, 4])
    second = cells.place([1, 2, 3, 9], 10)
    assert second is not None and second.cached == 3 and second.slot != first.slot
    assert cells.used == 4
    cells.finish(first.slot)
    cells.forget()
    assert shelf.held[second.slot] == [1, 2, 3] and cells.used == 3


def test_room_is_by_tokens_and_not_by_slots() -> None:
    shelf = Shelf(8)
    cells = Cells(shelf, 8, 20)
    assert cells.place([1] * 8, 12) is not None
    assert cells.place([2] * 8, 12) is None
    assert cells.place([2] * 4, 8) is not None
    assert cells.place([3], 2) is None


def test_what_nobody_uses_makes_room_the_oldest_first() -> None:
    shelf = Shelf(3)
    cells = Cells(shelf, 3, 12)
    for text in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        place = cells.place(text, 4)
        assert place is not None
        shelf.forward([Chunk(place.slot, text)])
        cells.feed(place.slot, text)
        cells.finish(place.slot)
    assert cells.used == 9
    place = cells.place([3, 3, 3, 4, 5], 9)
    assert place is not None and place.cached == 3
    assert [2, 2, 2] in shelf.held and [1, 1, 1] not in shelf.held


@pytest.mark.parametrize("kind", [Shelf, OwnShelf])
def test_without_keeping_nothing_stays(kind: type[Shelf]) -> None:
    shelf = kind(2)
    cells = Cells(shelf, 2, 20, keep=False)
    place = cells.place([1, 2, 3], 5)
    assert place is not None
    shelf.forward([Chunk(place.slot, [1, 2, 3])])
    cells.feed(place.slot, [1, 2, 3])
    cells.finish(place.slot)
    assert cells.used == 0 and not any(shelf.held)
    again = cells.place([1, 2, 3], 5)
    assert again is not None and again.cached == 0


def test_what_is_kept_goes_when_keeping_it_has_cost_what_it_is_worth() -> None:
    shelf = Shelf(4)
    cells = Cells(shelf, 4, 100, kept_steps=20)

    def read(text: list[int]) -> tuple[int, int]:
        place = cells.place(text, len(text) + 1)
        assert place is not None
        shelf.forward([Chunk(place.slot, text[place.cached :])])
        cells.feed(place.slot, text[place.cached :])
        return place.slot, place.cached

    slot, _ = read([1, 1, 1, 1, 1, 1, 1])
    cells.finish(slot)
    for _ in range(5):
        cells.passed(4)
    other, cached = read([1, 1, 1, 2])  # a side branch: the first one stays whole, and counts anew
    assert cached == 3
    cells.passed(4)
    assert [1, 1, 1, 1, 1, 1, 1] in shelf.held
    for _ in range(5):
        cells.passed(4)
    assert [1, 1, 1, 1, 1, 1, 1] not in shelf.held
    assert shelf.held[other] == [1, 1, 1, 2], "one that is being written stays however long it takes"
    assert cells.used == 4
    cells.finish(other)
    for _ in range(100):
        cells.passed(0)  # while nobody writes nothing passes over it
    assert shelf.held[other] == [1, 1, 1, 2]


def test_slots_that_share_no_pool_keep_what_they_hold() -> None:
    shelf = OwnShelf(2)
    cells = Cells(shelf, 2, 20, kept_steps=1)
    place = cells.place([1, 2, 3], 5)
    assert place is not None
    shelf.forward([Chunk(place.slot, [1, 2, 3])])
    cells.feed(place.slot, [1, 2, 3])
    cells.finish(place.slot)
    for _ in range(10):
        cells.passed(2)
    assert shelf.held[place.slot] == [1, 2, 3]
