"""The decoding loop, on an exact toy backend whose answers can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proposing import Always

from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.decode import Decoder, Request
from negawatt.engine.ngrams import Lookup
from negawatt.engine.settings import Settings
from negawatt.errors import UsageError

VOCAB = 11


class Arithmetic(Backend):
    """An exact language: the likeliest next token is (3·last + position) mod 11. Keeps every promise."""

    name = "arithmetic"
    has_speculation = True
    ragged = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.slots: list[list[int]] = [[] for _ in range(settings.batch)]
        self.vocab_size = VOCAB
        self.calls = 0

    @classmethod
    def version(cls) -> str:
        return "1"

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        return artifact_path

    def load(self, path: Path) -> None: ...

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        self.calls += 1
        results = []
        for chunk in chunks:
            rows = []
            for token in chunk.tokens:
                self.slots[chunk.slot].append(token)
                row = np.zeros(VOCAB, np.float32)
                row[following(self.slots[chunk.slot])] = 5.0
                rows.append(row)
            results.append(np.array(rows[len(rows) - chunk.rows :], np.float32).reshape(-1, VOCAB))
        return results

    def release(self, slot: int) -> None:
        self.slots[slot] = []

    def truncate(self, slot: int, length: int) -> None:
        del self.slots[slot][length:]


class Lockstep(Arithmetic):
    """The same language on an engine that advances its slots together, and checks that they are."""

    name = "lockstep"
    ragged = False
    has_speculation = False

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        filled = {slot for slot, tokens in enumerate(self.slots) if tokens}
        fed = {chunk.slot for chunk in chunks}
        assert not filled or (filled == fed and all(len(chunk.tokens) == 1 for chunk in chunks))
        return super().forward(chunks)


def following(tokens: Sequence[int]) -> int:
    return (3 * tokens[-1] + len(tokens) % 3) % VOCAB


def expected(prompt: Sequence[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(following(tokens))
    return tokens[len(prompt) :]


prompts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=7)


@given(
    prompts, st.integers(1, 30), st.integers(1, 5), st.sampled_from(["plain", "ngram", "always", "lockstep"])
)
def test_greedy_answers_are_exact_whatever_the_batch_and_the_speculation(
    texts: list[list[int]], n: int, batch: int, kind: str
) -> None:
    settings = Settings(batch=batch, speculation="ngram" if kind in ("ngram", "always") else "none")
    backend = (Lockstep if kind == "lockstep" else Arithmetic)(settings)
    decoder = Decoder(backend, lookup=Lookup(lambda: Always(6)) if kind == "always" else None)
    answers = decoder.generate([Request(text, n + i % 3) for i, text in enumerate(texts)])
    assert [a.tokens for a in answers] == [expected(text, n + i % 3) for i, text in enumerate(texts)]
    assert all(slot == [] for slot in backend.slots)
    assert sum(step.produced for step in decoder.steps) >= sum(len(a.tokens) for a in answers)


def test_speculation_needs_fewer_calls_on_text_that_repeats() -> None:
    calls = {}
    for speculation in ("none", "ngram"):
        backend = Arithmetic(Settings(speculation=speculation))
        Decoder(backend, lookup=Lookup(lambda: Always(6))).generate([Request([1], 80)])
        calls[speculation] = backend.calls
    assert calls["none"] == 80
    assert calls["ngram"] < 40


@given(prompts)
def test_scores_are_those_of_each_sequence_alone(texts: list[list[int]]) -> None:
    decoder = Decoder(Arithmetic(Settings(batch=3)))
    pairs = [(text, [*expected(text, 2), 0]) for text in texts]
    for (context, continuation), (log_probs, greedy) in zip(pairs, decoder.score(pairs), strict=True):
        tokens = [*context, *continuation]
        likeliest = [following(tokens[: len(context) + i]) == t for i, t in enumerate(continuation)]
        total = np.log(np.exp(5.0) + VOCAB - 1)
        assert log_probs == pytest.approx([(5.0 if hit else 0.0) - total for hit in likeliest], abs=1e-5)
        assert greedy == all(likeliest)


def test_sampling_follows_the_distribution() -> None:
    """11 tokens, one of weight e⁵ˑ⁰·⁴: its frequency over many seeds is its probability."""
    decoder = Decoder(Arithmetic(Settings()))
    likeliest = following([4])
    taken = [
        decoder.generate([Request([4], 1, temperature=2.5, seed=seed)])[0].tokens[0] for seed in range(600)
    ]
    probability = np.exp(2.0) / (np.exp(2.0) + VOCAB - 1)
    assert abs(taken.count(likeliest) / 600 - probability) < 4 * np.sqrt(
        probability * (1 - probability) / 600
    )


def test_a_nucleus_leaves_out_the_tail() -> None:
    decoder = Decoder(Arithmetic(Settings()))
    request = {"temperature": 1.0, "top_p": 0.9}
    taken = {decoder.generate([Request([4], 1, seed=s, **request)])[0].tokens[0] for s in range(60)}  # type: ignore[arg-type]
    assert taken == {following([4])}


def test_an_exception_in_a_callback_releases_every_slot() -> None:
    backend = Arithmetic(Settings(batch=2))

    def fail(_index: int, _token: int) -> None:
        raise RuntimeError("the reader left")

    with pytest.raises(RuntimeError):
        Decoder(backend).generate([Request([1], 9), Request([2], 9)], fail)
    assert backend.slots == [[], []]


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"threads": 0}, {"max_context": 1}, {"speculation": "crystal ball"}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings().replace(**wrong)


def test_settings_round_trip_and_refuse_unknown_fields() -> None:
    settings = Settings(engine="llamacpp", threads=2, kv_cache="q8_0", speculation="ngram")
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(UsageError, match="turbo"):
        Settings.from_json({"turbo": True})
