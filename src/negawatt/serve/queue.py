"""`FairQueue`: who is served next, so that no key waits because another asks much."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    item: T
    cost: float


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996): keys take turns by the work they ask for.

    Of two waiting items the higher priority goes first; among equals the one whose key has been served
    less work, and within a key the older.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, _Entry[T]]] = []
        self._waiting: dict[int, _Entry[T]] = {}
        self._served: dict[tuple[int, str], float] = {}  # (priority, key) -> its virtual finish
        self._now: dict[int, float] = {}  # priority -> virtual time
        self._count = itertools.count()
        self.work = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T, *, key: str, priority: int, cost: float) -> None:
        """Add an item whose service takes `cost`, in any unit common to all."""
        start = max(self._now.get(priority, 0.0), self._served.get((priority, key), 0.0))
        self._served[priority, key] = start + cost
        entry = _Entry(item, cost)
        self._waiting[id(item)] = entry
        self.work += cost
        heapq.heappush(self._heap, (-priority, start, next(self._count), entry))

    def take(self) -> T | None:
        """The next item, or None."""
        while self._heap:
            priority, start, _, entry = heapq.heappop(self._heap)
            if self._waiting.get(id(entry.item)) is entry:
                self._now[-priority] = start
                self._leave(entry)
                return entry.item
        return None

    def remove(self, item: T) -> bool:
        """Take an item out of the queue, wherever it stands; False when it is not in it."""
        entry = self._waiting.get(id(item))
        if entry is None:
            return False
        self._leave(entry)
        return True

    def _leave(self, entry: _Entry[T]) -> None:
        del self._waiting[id(entry.item)]
        self.work -= entry.cost
        if not self._waiting:  # nobody waits: what was served before gives nobody an advantage
            self._heap.clear()
            self._served.clear()
            self._now.clear()
            self.work = 0.0
