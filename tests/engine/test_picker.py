"""Tokens are drawn from what temperature and nucleus leave, and told with the model's own probabilities."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from negawatt.engine.picker import Picker


def row(seed: int, size: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> set[int]:
    """By the definition: the likeliest tokens that hold the probability together."""
    weights = np.exp((logits.astype(float) - logits.max()) / temperature)
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")
    running = np.cumsum(weights[order])
    return set(order[: int(np.searchsorted(running, top_p)) + 1].tolist())


def test_greedy_takes_the_likeliest() -> None:
    logits = row(1)
    assert Picker().pick(logits).token == int(logits.argmax())


@given(seed=st.integers(0, 1000), temperature=st.floats(0.2, 2.0), top_p=st.floats(0.05, 0.999))
def test_a_draw_lies_in_the_nucleus(seed: int, temperature: float, top_p: float) -> None:
    logits = row(seed)
    allowed = nucleus(logits, temperature, min(1.0, top_p + 1e-4))  # float32 may round the edge in
    picker = Picker(temperature, top_p, seed)
    assert {picker.pick(logits).token for _ in range(20)} <= allowed


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    picker = Picker(1.0, 1.0, 7)
    counts = np.bincount([picker.pick(logits).token for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    picker = Picker(1.0, 0.7, 7)
    counts = np.bincount([picker.pick(logits).token for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.625, 0.375, 0, 0]).max() < 0.03


def test_the_same_seed_draws_the_same() -> None:
    rows = [row(i) for i in range(8)]
    one, two, other = Picker(1.0, 0.9, 3), Picker(1.0, 0.9, 3), Picker(1.0, 0.9, 4)
    first = [one.pick(r).token for r in rows]
    assert first == [two.pick(r).token for r in rows]
    assert first != [other.pick(r).token for r in rows]


def test_probabilities_are_the_models_own_whatever_the_temperature() -> None:
    logits = row(5)
    expected = logits.astype(float) - np.log(np.exp(logits.astype(float)).sum())
    found = Picker(0.5, 0.8, 1, log_probs=3).pick(logits)
    assert found.log_prob is not None and abs(found.log_prob - expected[found.token]) < 1e-4
    best = np.argsort(-logits)[:3]
    assert [i for i, _ in found.top] == best.tolist()
    assert np.allclose([p for _, p in found.top], expected[best], atol=1e-4)
    assert Picker(log_probs=0).pick(logits).top == ()
