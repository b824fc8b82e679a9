"""`Cells`: which tokens lie in which slot of an engine's cache, what they share, and what still fits.

A slot outlives its sequence: what it holds stays until the room is needed, so that a later prompt that
begins in the same way need not be computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from negawatt.engine.backend import Backend
from negawatt.engine.beginning import common_beginning

KEPT_STEPS = 2000
"""A sequence that nobody uses is kept until so many tokens of others have been written. In a pool each of
these passes over every cell that is held; after about so many, that has cost what computing the cells again
would. So at most twice the best is spent, whether or not somebody comes for them (rent or buy)."""


@dataclass(slots=True)
class _Slot:
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    promised: int = 0
    live: bool = False
    used_at: int = 0
    written_at: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence was put: its slot, and how many tokens of its prompt lie there already."""

    slot: int
    cached: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What lies in a cache.

    Attributes:
        live: sequences that are being read or written.
        promised: tokens that these may still add.
        kept: tokens that the cache holds, those of ended sequences included; shared ones count once.
    """

    live: int = 0
    promised: int = 0
    kept: int = 0


class Cells:
    """The book over a backend's cache. Every change of the cache goes through it.

    Args:
        backend: loaded; with ``shares``, `Backend.reserve` was called with these numbers.
        slots: sequences that the cache holds.
        capacity: tokens that it holds in all.
        keep: whether finished sequences stay, for prompts that begin like them.
        kept_steps: for how many tokens of others, in a pool.
    """

    def __init__(
        self,
        backend: Backend,
        slots: int,
        capacity: int,
        *,
        keep: bool = True,
        kept_steps: int = KEPT_STEPS,
    ) -> None:
        self._backend, self.capacity, self._kept_steps = backend, capacity, kept_steps
        self._keep = keep and backend.ragged and (backend.shares or backend.has_speculation)
        self._slots = [_Slot() for _ in range(slots)]
        self._holders: Counter[int] = Counter()  # cell -> slots that hold it
        self._next = 0
        self._clock = self._written = 0

    @property
    def used(self) -> int:
        """Tokens that the cache holds, those that several sequences share counted once."""
        return len(self._holders)

    @property
    def promised(self) -> int:
        """Tokens that live sequences may still add."""
        return sum(slot.promised - len(slot.tokens) for slot in self._slots if slot.live)

    @property
    def live(self) -> int:
        return sum(slot.live for slot in self._slots)

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(self.live, self.promised, self.used)

    def place(self, prompt: Sequence[int], total: int) -> Place | None:
        """Find room for a sequence of up to `total` tokens, or None while there is none.

        The beginning that some slot holds already is taken over, except for the last token of the prompt,
        whose logits must be computed. What nobody uses is forgotten, the longest unused first.
        """
        free = [n for n, slot in enumerate(self._slots) if not slot.live]
        if not free:
            return None
        source, target, cached = self._choose(free, list(prompt[:-1]))
        must_stay = {cell for slot in self._slots if slot.live for cell in slot.cells}
        must_stay.update(self._slots[source].cells[:cached])
        if len(must_stay) + self.promised + total - cached > self.capacity:
            return None
        if target == source:
            self._shorten(target, cached)
        else:
            self._shorten(target, 0)
            if cached:
                self._backend.share(source, target, cached)
                self._hold(target, self._slots[source].tokens[:cached], self._slots[source].cells[:cached])
            self._slots[source].written_at = self._written  # somebody came for it
        slot = self._slots[target]
        slot.live, slot.promised = True, total
        self._touch(target)
        for number in sorted((n for n in free if n != target), key=lambda n: self._slots[n].used_at):
            if self.used + self.promised <= self.capacity:
                break
            self._shorten(number, 0)
        return Place(target, cached)

    def feed(self, slot: int, tokens: Sequence[int]) -> None:
        """Note that tokens were appended to a sequence."""
        cells = list(range(self._next, self._next + len(tokens)))
        self._next += len(tokens)
        self._hold(slot, list(tokens), cells)

    def passed(self, sequences: int) -> None:
        """Note a step in which so many sequences were written; what was kept for long enough is forgotten."""
        self._written += sequences
        if self._backend.shares:
            for number, slot in enumerate(self._slots):
                if not slot.live and slot.tokens and self._written - slot.written_at > self._kept_steps:
                    self._shorten(number, 0)

    def take_back(self, slot: int, length: int) -> None:
        """Shorten a live sequence, as after proposed tokens that were wrong."""
        self._shorten(slot, length)

    def finish(self, slot: int) -> None:
        """The sequence has ended; what it holds may stay."""
        self._slots[slot].live = False
        self._touch(slot)
        if not self._keep:
            self._shorten(slot, 0)

    def forget(self) -> None:
        """Empty every slot that no live sequence has."""
        for number, slot in enumerate(self._slots):
            if not slot.live:
                self._shorten(number, 0)

    # -- inside ----------------------------------------------------------------------------------

    def _choose(self, free: list[int], wanted: list[int]) -> tuple[int, int, int]:
        """The slot to take a beginning from, the one to put the sequence into, and the beginning's length."""

        def emptiest(numbers: list[int]) -> int:
            return min(numbers, key=lambda n: (len(self._slots[n].tokens) > 0, self._slots[n].used_at))

        if self._keep:
            sources = range(len(self._slots)) if self._backend.shares else free
            common = {n: self._common(n, wanted) for n in sources}
            source = max(common, key=lambda n: (common[n], not self._slots[n].live))
            if cached := common[source]:
                # One that goes on where another ended takes its place; a side branch leaves it whole.
                branches = self._backend.shares and 2 * cached < len(self._slots[source].tokens)
                if not self._slots[source].live and not branches:
                    return source, source, cached
                others = [n for n in free if n != source]
                return source, emptiest(others) if others else source, cached
        target = emptiest(free)
        return target, target, 0

    def _common(self, number: int, wanted: list[int]) -> int:
        """Length of the beginning that a slot and a prompt share."""
        return common_beginning(self._slots[number].tokens, wanted)

    def _hold(self, number: int, tokens: list[int], cells: list[int]) -> None:
        slot = self._slots[number]
        slot.tokens += tokens
        slot.cells += cells
        self._holders.update(cells)

    def _shorten(self, number: int, length: int) -> None:
        slot = self._slots[number]
        if len(slot.tokens) <= length:
            return
        for cell in slot.cells[length:]:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                del self._holders[cell]
        del slot.tokens[length:], slot.cells[length:]
        if length:
            self._backend.truncate(number, length)
        else:
            self._backend.release(number)

    def _touch(self, number: int) -> None:
        self._clock += 1
        self._slots[number].used_at, self._slots[number].written_at = self._clock, self._written
