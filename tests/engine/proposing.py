"""A way of proposing for tests: always as many tokens, whether it pays or not."""

from __future__ import annotations

from negawatt.engine.proposal_length import ProposalLength


class Always(ProposalLength):
    """Proposes the same number of tokens whether it pays or not."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def next(self, room: int, unread: int = 0) -> int:
        return min(room, self._length)
