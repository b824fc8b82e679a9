"""`NGrams`: proposals for what comes next, from what came before in the same text (prompt lookup)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from negawatt.engine.proposal_length import MOST, ProposalLength
from negawatt.engine.settings import Settings

LONGEST, SHORTEST = 4, 2
"""An n-gram of 4, 3 or 2 tokens seen before proposes the tokens after it."""


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
                return list(history[found : found + max(0, min(MOST, room))])
        return []


class Lookup:
    """How much of what n-grams propose is verified: as much as pays, by what calls were measured to cost.

    Proposing costs next to nothing; verifying may not. Learns over all sequences, apart for each number of
    sequences that are written at once, as what a call costs depends on it.

    Args:
        length: makes what learns and decides.
    """

    def __init__(self, length: Callable[[], ProposalLength] = ProposalLength) -> None:
        self._make = length
        self._lengths: dict[int, ProposalLength] = {}

    @classmethod
    def under(cls, settings: Settings) -> Lookup | None:
        """What these settings ask for."""
        return cls() if settings.speculation == "ngram" else None

    def chosen(self, found: Sequence[list[int]]) -> list[list[int]]:
        """The beginnings that go into a call, of what was found for each of its sequences."""
        longest = max(map(len, found), default=0)
        most = self._of(len(found)).next(longest) if longest else 0
        return [tokens[:most] for tokens in found]

    def learn(self, verified: Sequence[tuple[int, int]], fed: int, cpu_s: float) -> None:
        """Note a call that did nothing but go on with sequences.

        Args:
            verified: for each sequence how many tokens were proposed, and how many of them were right.
            fed: tokens of the call.
            cpu_s: that it took.
        """
        length = self._of(len(verified))
        length.called(fed, cpu_s, len(verified))
        for proposed, accepted in verified:
            length.judged(proposed, accepted)

    def _of(self, sequences: int) -> ProposalLength:
        if sequences not in self._lengths:
            self._lengths[sequences] = self._make()
        return self._lengths[sequences]
