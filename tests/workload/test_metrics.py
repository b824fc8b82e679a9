"""Metrics against values worked out by hand, against the originals, and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import UsageError, WorkloadError
from negawatt.workload import (
    METRICS,
    ChooseItem,
    ClassifyItem,
    Generated,
    GenerateItem,
    PerplexityItem,
    QualityItem,
    Scored,
    Workload,
    aggregate,
    ask,
    judge,
    judge_agreement,
    metric,
    weight,
)

CHOOSE = ChooseItem("c", "q", ("a rather long choice", "short"), 0)
CLASSIFY = ClassifyItem("l", "p", ("negative", "positive"), "positive")
GENERATE = GenerateItem("g", "p", ("the cat sat on the mat", "a cat was sitting on a mat"), 8)
PERPLEXITY = PerplexityItem("p", "t")


def test_accuracy_takes_the_highest_sum_and_accuracy_norm_the_highest_per_byte() -> None:
    response = Scored((-10.0, -5.0), (5, 1))  # 20 bytes: −0.5 each; 5 bytes: −1 each
    assert judge("accuracy", CHOOSE, response) == 0
    assert judge("accuracy_norm", CHOOSE, response) == 1
    assert judge("accuracy", CLASSIFY, Scored((-3.0, -2.0), (1, 1))) == 1
    assert judge("accuracy", CLASSIFY, Scored((-2.0, -3.0), (1, 1))) == 0


def test_bytes_and_not_characters_are_counted() -> None:
    item = ChooseItem("c", "q", ("ääää", "abcde"), 0)  # 8 and 5 bytes, 4 and 5 characters
    assert judge("accuracy_norm", item, Scored((-7.0, -5.0), (4, 5))) == 1


def test_exact_match_and_token_f1() -> None:
    assert judge("exact_match", GENERATE, Generated(" The cat sat on the mat. ")) == 1
    assert judge("exact_match", GENERATE, Generated("The cat sat")) == 0
    # "cat sat" against "cat sat on mat": 2 common, precision 1, recall ½
    assert judge("token_f1", GENERATE, Generated("the cat sat")) == pytest.approx(2 / 3)
    assert judge("token_f1", GENERATE, Generated("")) == 0
    assert judge("token_f1", GenerateItem("g", "p", ("the",), 2), Generated("A!")) == 1  # both empty


@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_bounded(a: str, b: str) -> None:
    forth = judge("token_f1", GenerateItem("g", "p", (b,), 2), Generated(a))
    back = judge("token_f1", GenerateItem("g", "p", (a,), 2), Generated(b))
    assert forth == back
    assert 0 <= forth <= 1
    assert judge("token_f1", GenerateItem("g", "p", (a,), 2), Generated(a)) == 1


@pytest.mark.parametrize("name", ["chrf", "bleu", "rouge_l", "token_f1", "exact_match"])
def test_text_metrics_rank_answers(name: str) -> None:
    perfect, close, wrong = (
        judge(name, GENERATE, Generated(t))
        for t in ("the cat sat on the mat", "the cat sat on a rug", "Prices rose")
    )
    assert perfect == pytest.approx(1)
    assert 0 <= wrong <= close <= perfect
    assert wrong < 0.3


def test_text_metrics_by_hand() -> None:
    # Longest common subsequence "the cat sat on mat": 5 of 5 and of 6 words.
    assert judge("rouge_l", GENERATE, Generated("the cat sat on mat")) == pytest.approx(2 * 5 / 11)
    one = GenerateItem("g", "p", ("the cat sat on the mat",), 8)
    # Precisions 5/6, 3/5, 2/4, 1/3 and no brevity penalty.
    assert judge("bleu", one, Generated("the cat sat on the rug")) == pytest.approx(
        (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    )


def test_perplexity_is_nats_a_token_and_aggregates_over_tokens() -> None:
    first, second = Scored((-6.0,), (3,)), Scored((-40.0,), (10,))
    scores = [judge("perplexity", PERPLEXITY, r) for r in (first, second)]
    assert scores == [2.0, 4.0]
    weights = [weight("perplexity", r) for r in (first, second)]
    whole = aggregate("perplexity", scores, weights=weights)
    assert whole.value == pytest.approx(math.exp(46 / 13))
    assert whole.low <= whole.value <= whole.high
    with pytest.raises(WorkloadError, match="no token to score"):
        judge("perplexity", PERPLEXITY, Scored((0.0,), (0,)))


def test_proportions_get_wilsons_interval() -> None:
    # The example of Newcombe (Statistics in Medicine 17, 1998, p. 857): 81 of 263.
    whole = aggregate("accuracy", [1.0] * 81 + [0.0] * 182)
    assert (round(whole.low, 4), round(whole.high, 4)) == (0.2553, 0.3662)
    assert whole.n == 263


@given(
    st.integers(1, 6).flatmap(
        lambda rows: st.lists(
            st.lists(st.floats(-30, 30), min_size=5, max_size=5), min_size=rows, max_size=rows
        )
    ),
    st.integers(0, 2**32 - 1),
)
def test_agreement_of_a_run_with_itself_is_perfect(rows: list[list[float]], seed: int) -> None:
    reference = np.array(rows)
    noise = np.random.default_rng(seed).normal(size=reference.shape)
    assert judge_agreement("top1_match", reference, reference) == 1
    assert judge_agreement("kl_divergence", reference, reference) == pytest.approx(0, abs=1e-12)
    assert judge_agreement("kl_divergence", reference, reference + noise) >= 0
    # Log-probabilities are known up to a constant a row.
    assert judge_agreement("kl_divergence", reference, reference + 3) == pytest.approx(0, abs=1e-9)


def test_agreement_by_hand() -> None:
    reference = np.log([[0.5, 0.5, 1e-300], [0.9, 0.05, 0.05]])
    candidate = np.log([[0.25, 0.75, 1e-300], [0.9, 0.05, 0.05]])
    divergence = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert judge_agreement("kl_divergence", reference, candidate) == pytest.approx(divergence)
    assert judge_agreement("top1_match", reference, candidate) == 0.5
    impossible = np.array([[0.0, -math.inf]])
    assert judge_agreement("kl_divergence", impossible, np.log([[0.5, 0.5]])) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "item", "response", "sentence"),
    [
        ("bleu", CHOOSE, Generated("x"), "items of kind 'choose'; accuracy, accuracy_norm do"),
        ("top1_match", CHOOSE, Generated("x"), "does not judge items of kind"),
        ("accurcy", CHOOSE, Generated("x"), "no metric is called 'accurcy'; there are accuracy"),
        ("accuracy", CHOOSE, Generated("x"), "item 'c' needs 2 scored continuations"),
        ("accuracy", CHOOSE, Scored((-1.0,), (1,)), "item 'c' needs 2 scored continuations"),
        ("accuracy", CHOOSE, Scored((-1.0, math.nan), (1, 1)), "answered item 'c' with NaN"),
        ("bleu", GENERATE, Scored((-1.0,), (1,)), "item 'g' needs generated text"),
    ],
)  # fmt: skip
def test_faults_of_judging(name: str, item: QualityItem, response: Scored, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        judge(name, item, response)
    assert sentence in str(caught.value)


def test_faults_of_agreement() -> None:
    with pytest.raises(UsageError, match="two arrays of one shape"):
        judge_agreement("top1_match", np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(UsageError, match="top1_match or kl_divergence, not accuracy"):
        judge_agreement("accuracy", np.zeros((2, 3)), np.zeros((2, 3)))


def test_every_metric_is_reachable() -> None:
    """A perfect answer to every item of the offline workload gets the best score of every metric."""
    for item in Workload.open("offline").quality:
        request = ask(item)
        if isinstance(item, GenerateItem):
            response: Generated | Scored = Generated(item.references[0])
        elif isinstance(item, ChooseItem | ClassifyItem):
            right = item.answer if isinstance(item, ChooseItem) else item.labels.index(item.answer)
            n = len(getattr(request, "continuations", ()))
            response = Scored(tuple(-0.1 if i == right else -99.0 for i in range(n)), (1,) * n)
        else:
            response = Scored((-2.0,), (2,))
        for m in METRICS.values():
            if item.kind in m.kinds and m.name not in ("top1_match", "kl_divergence"):
                assert judge(m.name, item, response) == pytest.approx(1.0)
                assert metric(m.name) is m
