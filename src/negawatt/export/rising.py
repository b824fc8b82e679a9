"""`Rising`: counters that never fall, made of figures that may."""

from __future__ import annotations

from collections.abc import Hashable


class Rising:
    """Holds each counter at the most it has been until it gets beyond that.

    Dynamic energy is what was spent beyond idle and may be slightly negative over a while, which is
    never clamped. A receiver takes a counter that falls for one that began anew, and counts the
    whole of it again; so the counter waits instead, and no joule is lost or added in the long run.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, float] = {}
        self._next: dict[Hashable, float] = {}

    def __call__(self, key: Hashable, value: float) -> float:
        """The counter's next value."""
        most = max(value, self._held.get(key, 0.0))
        self._next[key] = most
        return most

    def turn(self) -> None:
        """A round is over: forget the counters that it had not."""
        self._held, self._next = self._next, {}
