"""Prompt lookup: what n-grams propose is verified as far as that pays, and answers stay the model's own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from test_decode import Arithmetic, expected

from negawatt.engine import Request, Settings
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.batching import Batching, Job
from negawatt.engine.cells import Cells
from negawatt.engine.decode import Decoder
from negawatt.engine.ngrams import Lookup, NGrams
from negawatt.engine.proposal_length import FIRST, MOST

PROMPT = [1, 2, 3]
N = 120
"""The exact language soon repeats itself, so that n-grams are nearly always right."""


class Costly(Arithmetic):
    """The exact language on an engine whose calls take time, by how many tokens they are fed.

    Its `clock` stands for the one of the process: it goes on by what calls take, and by nothing else.
    """

    def __init__(self, call_s: Callable[[int], float]) -> None:
        super().__init__(Settings(speculation="ngram"))
        self._call_s, self._now_s = call_s, 0.0

    def clock(self) -> float:
        return self._now_s

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        self._now_s += self._call_s(sum(len(chunk.tokens) for chunk in chunks))
        return super().forward(chunks)


def in_a_call(backend: Costly) -> tuple[list[int], int]:
    """The answer, and how many tokens were proposed for it."""
    decoder = Decoder(backend)
    (answer,) = decoder.generate([Request(PROMPT, N)])
    return answer.tokens, sum(step.tokens - 1 for step in decoder.steps if step.phase == "decode")


def in_a_session(backend: Costly) -> tuple[list[int], int]:
    loop = Batching(backend, Cells(backend, 1, 200), 1)
    loop.submit(Job(0, PROMPT, N))
    written, proposed = [], 0
    while loop.busy:
        report = loop.step()
        written += [picked.token for _, picked in report.picked]
        proposed += sum(part.fed - 1 for part in report.parts if part.phase == "decode")
    return written, proposed


@pytest.mark.parametrize("write", [in_a_call, in_a_session])
def test_where_longer_calls_cost_more_than_they_save_proposing_rests(
    write: Callable[[Costly], tuple[list[int], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = Costly(lambda tokens: 0.0005 * tokens**2)
    monkeypatch.setattr(time, "process_time", dear.clock)
    assert write(dear) == (expected(PROMPT, N), pytest.approx(sum(FIRST), abs=sum(FIRST) / 2))
    cheap = Costly(lambda tokens: 0.002)
    monkeypatch.setattr(time, "process_time", cheap.clock)
    answer, proposed = write(cheap)
    assert answer == expected(PROMPT, N)
    assert proposed > N / 2 and cheap.calls < N / 2 < dear.calls


def paid(lookup: Lookup, sequences: int, acceptance: float, verifying_s: float, n: int = 600) -> float:
    """Proposals in a call, over the last half of `n` simulated calls of 1 s a sequence."""
    dice, late = random.Random(3), 0
    for call in range(n):
        chosen = lookup.chosen([[7] * MOST for _ in range(sequences)])
        verified = []
        for tokens in chosen:
            right = 0
            while right < len(tokens) and dice.random() < acceptance:
                right += 1
            verified.append((len(tokens), right))
        extra = sum(map(len, chosen))
        lookup.learn(verified, sequences + extra, sequences + extra * verifying_s)
        late += extra if call >= n // 2 else 0
    return late / (n - n // 2) / sequences


def test_each_number_of_sequences_is_learnt_apart() -> None:
    """One at a time waits for memory, and a longer call is nearly free; four at a time are arithmetic."""
    lookup = Lookup()
    for _ in range(2):
        assert paid(lookup, 1, 0.9, 0.02) > 4
        assert paid(lookup, 4, 0.9, 1.0) < 0.1


def test_of_a_wrong_guess_nothing_is_verified_any_more() -> None:
    assert paid(Lookup(), 1, 0.05, 0.3) < 0.1
    assert paid(Lookup(), 1, 0.6, 0.05) > 1


def test_sequences_without_a_repetition_are_fed_their_last_token_alone() -> None:
    lookup = Lookup()
    for _ in range(len(FIRST) + 1):
        assert lookup.chosen([[], []]) == [[], []]
    one, none = lookup.chosen([[5, 6, 7, 8, 9], []]), lookup.chosen([])
    assert (one[1], none) == ([], [])
    assert len(one[0]) == FIRST[0]  # calls that had nothing to propose are none of those to learn by


def test_only_under_settings_that_ask_for_it() -> None:
    assert isinstance(Lookup.under(Settings(speculation="ngram")), Lookup)
    assert Lookup.under(Settings()) is Lookup.under(Settings(speculation="draft small")) is None


def test_the_longest_repetition_goes_before_shorter_ones() -> None:
    text = [1, 2, 3, 4, 50, 9, 3, 4, 60, 8, 1, 2, 3, 4]
    assert NGrams().draft(text, 3) == [50, 9, 3]
    assert NGrams().draft([*text[4:-4], 3, 4], 3) == [60, 8, 3]
    assert NGrams().draft(text, 100) == text[4 : 4 + MOST]
    assert NGrams().draft(text, 0) == NGrams().draft([1, 2, 3], 5) == []
