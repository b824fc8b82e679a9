"""`Drafter`: a small model that proposes what a large one will say, at batch 1.

What it proposes is verified by the large one in one call, and kept as far as it is what the large one says
itself, so answers are the large one's (Y. Leviathan et al., ICML 2023; here proposals are the draft's
likeliest tokens). It runs in the same process, with a cache of its own, so that what it takes is part of
what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.beginning import common_beginning
from negawatt.engine.proposal_length import MOST, ProposalLength

CATCH_UP = 2 * MOST
"""The draft is behind by a token or two after each call; more than this is reading of its own."""


class Drafter:
    """Args:
    backend: the small model, loaded, with one slot.
    keep: whether its cache outlives a sequence, for a next one that begins like it.
    length: how many tokens it proposes.
    """

    def __init__(self, backend: Backend, *, keep: bool = False, length: ProposalLength | None = None) -> None:
        self.backend, self.keep = backend, keep
        self.length = length or ProposalLength()
        self._held: list[int] = []  # tokens in its cache

    @classmethod
    def load(cls, model: Backend, path: Path) -> Drafter:
        """Load the draft of a loaded model, on as many threads, from what `Backend.prepare` made.

        Raises:
            EngineError: it cannot be loaded, or its vocabulary is not the model's.
        """
        own = model.settings.without_speculation().replace(weight_format="native", kv_cache="default")
        if own.gpu_layers:  # a number of the model's; the draft is small and fits where those are
            own = own.replace(gpu_layers=None)
        backend = type(model)(own)
        backend.load(path)
        model.refuse_draft(backend)
        return cls(backend)

    def read(self, tokens: Sequence[int], room: int) -> None:
        """Read what the model has read of a prompt, if proposing is expected to pay.

        Args:
            tokens: the sequence so far.
            room: tokens that may be written after the prompt.
        """
        wanted = list(tokens)
        if room > 1 and self.length.pays(room, self._unread(wanted)):
            self._catch_up(wanted)

    def propose(self, history: Sequence[int], room: int, ends: frozenset[int] = frozenset()) -> list[int]:
        """What may follow `history`: tokens, at most `room` of them; none while they do not pay.

        Args:
            history: the sequence so far.
            ends: tokens after which nothing follows.
        """
        wanted = list(history)
        if room < 1 or (length := self.length.next(room, self._unread(wanted))) < 1:
            return []
        if self._unread(wanted) > CATCH_UP:
            self._catch_up(wanted[:-1])
        begun_s = time.process_time()
        rows = self._follow(wanted)
        proposed = [int(rows[-1].argmax())]
        while len(proposed) < length and proposed[-1] not in ends:
            rows = self._feed(proposed[-1:])
            proposed.append(int(rows[-1].argmax()))
        self.length.proposed(len(proposed), time.process_time() - begun_s)
        return proposed

    def learn(self, held: int, proposed: int, accepted: int, fed: int, cpu_s: float) -> None:
        """Take back what was wrong, after a call of the model has verified proposals.

        Args:
            held: length of the sequence that the proposals followed.
            proposed, accepted, fed, cpu_s: see `ProposalLength.verified`.
        """
        self.length.verified(proposed, accepted, fed, cpu_s)
        self._shorten(held + accepted)

    def finish(self) -> None:
        """The sequence has ended."""
        if not self.keep:
            self.forget()

    def forget(self) -> None:
        """Empty the cache."""
        if self._held:
            self.backend.release(0)
            self._held = []

    # -- inside ----------------------------------------------------------------------------------

    def _unread(self, tokens: list[int]) -> int:
        return len(tokens) - common_beginning(self._held, tokens)

    def _catch_up(self, tokens: list[int]) -> None:
        """Hold these tokens, and note what reading them took."""
        unread, begun_s = self._unread(tokens), time.process_time()
        if unread > 0:
            self._follow(tokens)
            self.length.read(unread, time.process_time() - begun_s)

    def _follow(self, tokens: list[int]) -> Logits:
        """Hold exactly these tokens; the logits after the last one, which is always fed."""
        self._shorten(min(common_beginning(self._held, tokens), len(tokens) - 1))
        return self._feed(tokens[len(self._held) :])

    def _feed(self, tokens: list[int]) -> Logits:
        (rows,) = self.backend.forward([Chunk(0, tokens)])
        self._held += tokens
        return rows

    def _shorten(self, length: int) -> None:
        if length < len(self._held):
            self.backend.truncate(0, length)
            del self._held[length:]
