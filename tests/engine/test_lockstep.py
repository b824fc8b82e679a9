"""The book-keeping of a left-padded batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.engine.backend import Chunk
from negawatt.engine.lockstep import Lockstep, rows_of

prompts = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6)


@settings(deadline=None)  # the machine may be busy
@given(prompts, st.data())
def test_rows_follow_their_sequences(sequences: list[list[int]], data: st.DataObject) -> None:
    """Whatever is released and however chunks are ordered, each row holds its own tokens and positions."""
    batch = Lockstep()
    held = {slot: list(tokens) for slot, tokens in enumerate(sequences)}
    chunks = [Chunk(slot, tokens) for slot, tokens in held.items()]
    cache = np.zeros((0, 0), np.int64)
    for _ in range(4):
        step = batch.step(chunks)
        cache = step.tokens if step.fresh else np.concatenate([cache[step.kept], step.tokens], axis=1)
        assert cache.shape == step.mask.shape
        assert step.padded == (not step.mask.all())
        for row, chunk in enumerate(chunks):
            expected = held[chunk.slot]
            assert cache[row][step.mask[row] == 1].tolist() == expected
            n = len(chunk.tokens)
            assert step.positions[row, -n:].tolist() == list(range(len(expected) - n, len(expected)))
        for slot in data.draw(st.sets(st.sampled_from(sorted(held)), max_size=len(held) - 1)):
            batch.release(slot)
            del held[slot]
        for slot, tokens in held.items():
            tokens.append(100 + slot)
        order = data.draw(st.permutations(sorted(held)))
        chunks = [Chunk(slot, held[slot][-1:]) for slot in order]
    for slot in held:
        batch.release(slot)
    assert batch.step([Chunk(0, [1])]).fresh


def test_a_step_that_moves_nothing_says_so() -> None:
    batch = Lockstep()
    batch.step([Chunk(0, [1, 2]), Chunk(1, [3])])
    assert not batch.step([Chunk(0, [4]), Chunk(1, [5])]).reordered
    assert batch.step([Chunk(1, [4]), Chunk(0, [5])]).reordered
    batch.release(0)
    assert batch.step([Chunk(1, [6])]).reordered


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_tokens_taken_back_leave_no_trace_in_positions(length: int, kept: int, again: int) -> None:
    kept = min(kept, length)
    batch = Lockstep()
    batch.step([Chunk(0, range(1, length + 1))])
    assert batch.truncate(kept) == length - kept
    step = batch.step([Chunk(0, [7] * again)])
    assert step.positions.tolist() == [list(range(kept, kept + again))]
    assert step.mask.sum() == kept + again


def test_rows_of_gives_each_chunk_its_last_rows() -> None:
    logits = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    first, second = rows_of(logits, [Chunk(0, [1, 2, 3], rows=3), Chunk(1, [1])])
    assert (first == logits[0]).all()
    assert (second == logits[1, -1:]).all()
