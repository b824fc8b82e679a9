"""`NGrams`: proposals for what comes next, from what came before in the same text (prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST, DRAFT_LENGTH = 4, 2, 6
"""An n-gram of 4, 3 or 2 tokens seen before proposes the 6 tokens after it."""


class NGrams:
    """An index of one growing sequence of tokens; made anew for each."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, history: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that followed the last n-gram where it was seen before, longest n-gram first.

        Args:
            history: the sequence so far: that of the last call, and what was added since.
        """
        for end in range(self._indexed + 1, len(history)):  # index what is new, but not the very end
            for n in range(SHORTEST, LONGEST + 1):
                if end >= n:
                    self._ends[tuple(history[end - n : end])] = end
        self._indexed = max(self._indexed, len(history) - 1)
        for n in range(LONGEST, SHORTEST - 1, -1):
            found = self._ends.get(tuple(history[-n:]))
            if found is not None:
                return list(history[found : found + max(0, min(DRAFT_LENGTH, room))])
        return []
