"""`Lockstep`: where each sequence lies in a left-padded static batch.

Libraries whose cache is one tensor for the whole batch advance every sequence together. This keeps
the book for them: which row belongs to which slot, what is padding, which position comes next.
Rows always lie in the order of the chunks, so logits need no shuffling back, and a released
sequence leaves the batch with the next step, so that finished work costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from negawatt.engine.backend import Chunk, Logits

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """Inputs of one forward pass over `rows` sequences, `new` tokens wide.

    Attributes:
        fresh: nothing came before: the cache must be emptied first.
        kept: shape ``(rows,)``: the row each sequence had in the step before; ``0..rows-1`` if fresh.
        reordered: whether `kept` moves or drops rows.
        tokens: shape ``(rows, new)``, padded on the left with token 0.
        mask: shape ``(rows, past + new)``: 1 where there is a token, 0 where there is padding.
        padded: whether the mask holds any padding.
        positions: shape ``(rows, new)``: place of each token in its own sequence; 0 for padding.
        wanted: number of last positions whose logits some chunk asks for.
    """

    fresh: bool
    kept: NDArray[np.int32]
    reordered: bool
    tokens: Ids
    mask: Ids
    padded: bool
    positions: Ids
    wanted: int


class Lockstep:
    """The batch between two steps."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._before = 0
        self._mask: Ids = np.ones((0, 0), np.int64)

    def step(self, chunks: Sequence[Chunk]) -> Step:
        """Lay the chunks out as the next step of the batch.

        The first step holds every sequence of the batch; a later one holds the same number of
        tokens for each sequence that is not released.
        """
        fresh = not self._rows
        new = max(len(chunk.tokens) for chunk in chunks)
        tokens = np.zeros((len(chunks), new), np.int64)
        mask = np.zeros((len(chunks), new), np.int64)
        for row, chunk in enumerate(chunks):
            tokens[row, new - len(chunk.tokens) :] = chunk.tokens
            mask[row, new - len(chunk.tokens) :] = 1
        kept = np.arange(len(chunks), dtype=np.int32)
        reordered = False
        if not fresh:
            assert {chunk.slot for chunk in chunks} == set(self._rows), "one chunk for each live slot"
            assert mask.all(), "sequences of a batch advance by the same number of tokens"
            kept = np.array([self._rows[chunk.slot] for chunk in chunks], np.int32)
            reordered = len(chunks) != self._before or bool((kept != np.arange(len(chunks))).any())
            mask = np.concatenate([self._mask[kept], mask], axis=1)
        self._rows = {chunk.slot: row for row, chunk in enumerate(chunks)}
        self._before = len(chunks)
        self._mask = mask
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -new:]
        wanted = max(chunk.rows for chunk in chunks)
        return Step(fresh, kept, reordered, tokens, mask, not mask.all(), positions, wanted)

    def release(self, slot: int) -> None:
        """Leave the slot's row out of the following steps."""
        self._rows.pop(slot, None)

    def truncate(self, length: int) -> int:
        """Shorten the only sequence of the batch to `length` tokens; return how many that removes."""
        removed = int(self._mask.shape[1]) - length
        self._mask = self._mask[:, :length]
        return removed


def rows_of(logits: Logits, chunks: Sequence[Chunk]) -> list[Logits]:
    """Split logits of shape ``(rows, wanted, vocabulary)`` into what each chunk asked for."""
    return [row[-chunk.rows :] for row, chunk in zip(logits, chunks, strict=True)]
