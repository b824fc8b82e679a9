"""A draft model in the loops: answers stay the model's own, and what it takes is counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from proposing import Always
from test_decode import VOCAB, Arithmetic, expected

from negawatt.engine import Request, Settings
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.batching import Batching, Job
from negawatt.engine.cells import Cells
from negawatt.engine.decode import Decoder
from negawatt.engine.drafter import Drafter


class Drafted(Arithmetic):
    """The exact language on an engine that takes proposals."""

    name = "drafted"
    has_drafts = True


class Guessing(Arithmetic):
    """Says something else than the language after some tokens, and takes its time."""

    def __init__(self, wrong_after: frozenset[int], busy_s: float = 0.0) -> None:
        super().__init__(Settings())
        self.wrong_after, self.busy_s, self.spent_s = wrong_after, busy_s, 0.0

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        begun_s = time.process_time()
        (rows,) = super().forward(chunks)
        if chunks[0].tokens[-1] in self.wrong_after:
            rows = np.roll(rows, 1, axis=1)
        while time.process_time() - begun_s < self.busy_s:
            pass
        self.spent_s += time.process_time() - begun_s
        return [rows]


def drafted() -> Drafted:
    return Drafted(Settings(speculation="draft small"))


# -- the loops, on a language that is known exactly ---------------------------------------------------

prompts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4)
wrongs = st.frozensets(st.integers(0, VOCAB - 1))


@given(prompts, wrongs, st.integers(1, 30), st.integers(0, 6), st.booleans())
def test_answers_are_exact_however_wrong_the_draft_is(
    texts: list[list[int]], wrong: frozenset[int], n: int, length: int, keep: bool
) -> None:
    model, guessing = drafted(), Guessing(wrong)
    drafter = Drafter(guessing, keep=keep, length=Always(length) if length else None)
    answers = Decoder(model, drafter).generate([Request(text, n) for text in texts])
    assert [a.tokens for a in answers] == [expected(text, n) for text in texts]
    assert model.slots == [[]]
    assert keep or guessing.slots == [[]]


@given(prompts, wrongs, st.integers(1, 30), st.integers(0, 6), st.integers(1, 9), st.booleans())
def test_a_session_writes_the_same(
    texts: list[list[int]], wrong: frozenset[int], n: int, length: int, step_tokens: int, keep: bool
) -> None:
    model = drafted()
    drafter = Drafter(Guessing(wrong), keep=keep, length=Always(length) if length else None)
    loop = Batching(model, Cells(model, 1, 200, keep=keep), 1, step_tokens, drafter=drafter)
    for number, text in enumerate(texts):
        loop.submit(Job(number, text, n))
    written: dict[int, list[int]] = {}
    while loop.busy:
        for job, picked in loop.step().picked:
            written.setdefault(job, []).append(picked.token)
    assert written == {number: expected(text, n) for number, text in enumerate(texts)}


def test_an_answer_ends_where_it_ends_without() -> None:
    text, stop = [1, 2, 3], expected([1, 2, 3], 9)[6]
    plain = Decoder(Arithmetic(Settings())).generate([Request(text, 40, frozenset({stop}))])[0]
    answer = Decoder(drafted(), Drafter(Guessing(frozenset()), length=Always(4))).generate(
        [Request(text, 40, frozenset({stop}))]
    )[0]
    assert (answer.tokens, answer.finish_reason) == (
        plain.tokens,
        plain.finish_reason,
    ) and stop not in plain.tokens


def test_a_right_draft_saves_calls_of_the_model() -> None:
    model = drafted()
    Decoder(model, Drafter(Guessing(frozenset()), length=Always(4))).generate([Request([1], 81)])
    assert model.calls == 1 + 80 / 5


def test_where_tokens_are_drawn_at_random_nothing_is_proposed() -> None:
    guessing = Guessing(frozenset())
    Decoder(drafted(), Drafter(guessing, length=Always(4))).generate([Request([1], 9, temperature=1.0)])
    assert guessing.calls == 0


# -- what it takes is counted -------------------------------------------------------------------------


def test_cpu_seconds_of_the_draft_are_in_the_steps_of_the_answer() -> None:
    guessing = Guessing(frozenset({3, 7}), busy_s=0.004)
    decoder = Decoder(drafted(), Drafter(guessing, length=Always(3)))
    begun_s = time.process_time()
    decoder.generate([Request([1, 2], 12)])
    whole_s = time.process_time() - begun_s
    told_s = sum(step.cpu_s for step in decoder.steps)
    assert guessing.spent_s > 0.04
    assert guessing.spent_s <= told_s <= whole_s
    assert whole_s - told_s < 0.1 * whole_s  # picking tokens alone is in no step


def test_a_session_charges_the_draft_to_the_sequence_it_worked_for() -> None:
    guessing = Guessing(frozenset({3, 7}), busy_s=0.004)
    model = drafted()
    loop = Batching(model, Cells(model, 1, 200), 1, 16, drafter=Drafter(guessing, length=Always(3)))
    for number in range(2):
        loop.submit(Job(number, [number + 1, 2], 8))
    around_s, spent = time.process_time(), {0: 0.0, 1: 0.0}
    loop.idle_cpu_s()
    inside_s = time.process_time()
    of_draft = dict(spent)
    while loop.busy:
        before_s = guessing.spent_s
        report = loop.step()
        (part,) = report.parts
        spent[part.job] += report.cpu_s
        of_draft[part.job] += guessing.spent_s - before_s
    inside_s = time.process_time() - inside_s
    told_s = sum(spent.values()) + loop.idle_cpu_s()
    around_s = time.process_time() - around_s
    assert inside_s - 1e-9 <= told_s <= around_s + 1e-9
    assert all(spent[job] >= of_draft[job] > 0.01 for job in spent)
