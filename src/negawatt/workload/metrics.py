"""Metrics: the score of one answer, and of many.

=================  =========================  =====================================================
metric             kinds                      score of one item
=================  =========================  =====================================================
accuracy           choose, classify           1 if the right continuation has the highest summed
                                              log-probability, else 0
accuracy_norm      choose, classify           the same per UTF-8 byte of the choice, which takes the
                                              advantage from short ones
exact_match        generate                   1 if the normalised answer equals a reference, else 0
token_f1           generate                   harmonic mean of word precision and recall, best of
                                              the references, 0 to 1 (as SQuAD; Rajpurkar 2016)
chrf, bleu         generate                   sentence chrF2 and BLEU of sacrebleu, 0 to 1
rouge_l            generate                   F-measure of the longest common subsequence, 0 to 1
perplexity         perplexity                 nats per token (lower is better); of many items it is
                                              exp of the mean over all their tokens
ndcg@10            retrieve                   normalised discounted cumulative gain of the first 10
                                              documents, 0 to 1
mrr@10             retrieve                   1 / rank of the first relevant document among 10, else 0
recall@10, @1      retrieve                   share of the relevant documents among the first 10, or 1
overlap@10         retrieve, against a        share of the reference's first 10 documents that are
                   reference                  among the first 10 here
top1_match         any, against a reference   share of positions where both rank the same token first
kl_divergence      any, against a reference   mean of KL(reference ‖ candidate), nats a position
=================  =========================  =====================================================

The last three need no labels: see `judge_overlap` and `judge_agreement`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negawatt.errors import UsageError, WorkloadError, require
from negawatt.workload.ask import Generated, Ranked, Response, Scored
from negawatt.workload.intervals import Interval, bootstrap_mean, wilson
from negawatt.workload.items import (
    ChooseItem,
    ClassifyItem,
    GenerateItem,
    PerplexityItem,
    QualityItem,
    RetrieveItem,
)
from negawatt.workload.ranking import OVERLAP, RANKING_METRICS, depth_of, overlap


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric applies to and how its scores read.

    Attributes:
        name: its name in headers and results.
        kinds: the kinds of items it can judge.
        higher_is_better: False for perplexity and divergence.
        is_proportion: every item scores exactly 0 or 1.
        is_bounded: every item scores from 0 to 1.
    """

    name: str
    kinds: tuple[str, ...]
    higher_is_better: bool = True
    is_proportion: bool = False
    is_bounded: bool = True


_ANY = ("generate", "choose", "classify", "perplexity")
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", ("choose", "classify"), is_proportion=True),
        Metric("accuracy_norm", ("choose", "classify"), is_proportion=True),
        Metric("exact_match", ("generate",), is_proportion=True),
        Metric("token_f1", ("generate",)),
        Metric("chrf", ("generate",)),
        Metric("bleu", ("generate",)),
        Metric("rouge_l", ("generate",)),
        Metric("perplexity", ("perplexity",), higher_is_better=False, is_bounded=False),
        *(Metric(name, ("retrieve",)) for name in (*RANKING_METRICS, OVERLAP)),
        Metric("top1_match", _ANY),
        Metric("kl_divergence", _ANY, higher_is_better=False, is_bounded=False),
    )
}
DEFAULT_METRICS: dict[str, str] = {
    "generate": "token_f1",
    "choose": "accuracy",
    "classify": "accuracy",
    "perplexity": "perplexity",
    "retrieve": "ndcg@10",
}


def metric(name: str) -> Metric:
    """Look a metric up by name.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise UsageError(f"no metric is called {name!r}; there are {', '.join(METRICS)}") from None


def judge(name: str, item: QualityItem, response: Response) -> float:
    """Score of one answer; see the table above for what it means.

    Raises:
        UsageError: no such metric, or it does not apply to this kind of item.
        MissingDependency: chrF, BLEU and ROUGE need the extra ``quality``.
    """
    if item.kind not in metric(name).kinds or name not in _JUDGES:
        suited = [m.name for m in METRICS.values() if item.kind in m.kinds and m.name in _JUDGES]
        raise UsageError(f"{name} does not judge items of kind {item.kind!r}; {', '.join(suited)} do")
    return _JUDGES[name](item, response)


def judge_overlap(reference: Response, candidate: Response) -> float:
    """``overlap@10`` of two rankings of the same documents.

    Raises:
        UsageError: one of them is no ranking.
    """
    if not isinstance(reference, Ranked) or not isinstance(candidate, Ranked):
        raise UsageError(f"{OVERLAP} compares two rankings, not {reference!r} and {candidate!r}")
    return overlap(candidate.documents, reference.documents, depth_of(OVERLAP))


def judge_agreement(name: str, reference: ArrayLike, candidate: ArrayLike) -> float:
    """Agreement with a reference run on one item, without labels.

    Args:
        name: ``top1_match`` or ``kl_divergence``.
        reference: log-probabilities of the reference model, shape ``(positions, vocabulary)``.
        candidate: those of the candidate at the same positions, of the same shape.

    Raises:
        UsageError: another metric was named, or the shapes differ or are empty.
    """
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2 or p.size == 0:
        raise UsageError(
            f"agreement compares two arrays of one shape (positions, vocabulary), not {p.shape} and {q.shape}"
        )
    if name == "top1_match":
        return float(np.mean(p.argmax(axis=1) == q.argmax(axis=1)))
    if name == "kl_divergence":
        p, q = _normalised(p), _normalised(q)
        possible = np.isfinite(p)  # a token the reference excludes adds nothing
        terms = np.exp(p) * np.subtract(p, q, where=possible, out=np.zeros_like(p))
        return max(0.0, float(np.mean(terms.sum(axis=1))))
    raise UsageError(f"agreement is measured by top1_match or kl_divergence, not {name}")


def weight(name: str, response: Response) -> float:
    """How much an item counts in `aggregate`: its tokens for perplexity, 1 for all else."""
    if name == "perplexity" and isinstance(response, Scored):
        return float(response.token_counts[0])
    return 1.0


def margin(name: str, item: QualityItem, response: Response) -> float | None:
    """How sure an answer is: by how much it leads the next best; None where nothing is chosen.

    In nats, as the metric compares: of summed log-probabilities, or per byte for ``accuracy_norm``.
    """
    if not isinstance(item, ChooseItem | ClassifyItem) or not isinstance(response, Scored):
        return None
    options, _ = _options(item)
    sums = _scored(item, response, len(options)).log_probs
    per = [len(o.encode()) for o in options] if name == "accuracy_norm" else [1] * len(options)
    *_, second, first = sorted(s / n for s, n in zip(sums, per, strict=True))
    return first - second


def aggregate(
    name: str, scores: Sequence[float], *, weights: Sequence[float] | None = None, confidence: float = 0.95
) -> Interval:
    """Score of many items with its interval.

    Proportions get Wilson's interval, means a bootstrap. Perplexity is the exponential of the mean
    nats per token over all tokens: pass each item's `weight`.

    Raises:
        UsageError: no such metric, no scores, or not one weight for each score.
    """
    if metric(name).is_proportion:
        return wilson(int(sum(scores)), len(scores), confidence=confidence)
    mean = bootstrap_mean(scores, weights=weights, confidence=confidence)
    if name == "perplexity":
        return Interval(float(np.exp(mean.value)), float(np.exp(mean.low)), float(np.exp(mean.high)), mean.n)
    return mean


# -- one function a metric -------------------------------------------------------------------------


def _accuracy(item: QualityItem, response: Response) -> float:
    assert isinstance(item, ChooseItem | ClassifyItem)
    options, right = _options(item)
    return float(_best(_scored(item, response, len(options)).log_probs, item) == right)


def _accuracy_norm(item: QualityItem, response: Response) -> float:
    assert isinstance(item, ChooseItem | ClassifyItem)
    options, right = _options(item)
    sums = _scored(item, response, len(options)).log_probs
    per_byte = [s / len(o.encode()) for s, o in zip(sums, options, strict=True)]
    return float(_best(per_byte, item) == right)


def _perplexity(item: QualityItem, response: Response) -> float:
    assert isinstance(item, PerplexityItem)
    scored = _scored(item, response, 1)
    if scored.token_counts[0] < 1:
        raise WorkloadError(f"item {item.id!r} has no token to score; its text is too short")
    return -scored.log_probs[0] / scored.token_counts[0]


def _exact_match(item: QualityItem, response: Response) -> float:
    return _best_reference(item, response, lambda a, r: float(_words(a) == _words(r)))


def _token_f1(item: QualityItem, response: Response) -> float:
    return _best_reference(item, response, token_f1)


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, counted with multiplicity."""
    ours, theirs = Counter(_words(answer)), Counter(_words(reference))
    common = (ours & theirs).total()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (ours.total() + theirs.total())


def _chrf(item: QualityItem, response: Response) -> float:
    scorer = _sacrebleu_scorer("CHRF")
    return scorer.sentence_score(*_text_and_references(item, response)).score / 100  # type: ignore[no-any-return]


def _bleu(item: QualityItem, response: Response) -> float:
    scorer = _sacrebleu_scorer("BLEU")
    return scorer.sentence_score(*_text_and_references(item, response)).score / 100  # type: ignore[no-any-return]


def _rouge_l(item: QualityItem, response: Response) -> float:
    scorer = _rouge_scorer()
    return _best_reference(item, response, lambda a, r: float(scorer.score(r, a)["rougeL"].fmeasure))


def _ranking(name: str, item: QualityItem, response: Response) -> float:
    assert isinstance(item, RetrieveItem)
    if not isinstance(response, Ranked):
        raise UsageError(f"item {item.id!r} needs a ranking of documents for an answer, not {response!r}")
    if not item.relevant:
        raise UsageError(f"item {item.id!r} names no relevant document; {OVERLAP} judges it")
    how, depth = RANKING_METRICS[name]
    return how(response.documents, item.relevant, depth)


_JUDGES: dict[str, Callable[[QualityItem, Response], float]] = {
    "accuracy": _accuracy,
    "accuracy_norm": _accuracy_norm,
    "exact_match": _exact_match,
    "token_f1": _token_f1,
    "chrf": _chrf,
    "bleu": _bleu,
    "rouge_l": _rouge_l,
    "perplexity": _perplexity,
    **{name: partial(_ranking, name) for name in RANKING_METRICS},
}


# -- shared ----------------------------------------------------------------------------------------


def _options(item: ChooseItem | ClassifyItem) -> tuple[tuple[str, ...], int]:
    if isinstance(item, ChooseItem):
        return item.choices, item.answer
    return item.labels, item.labels.index(item.answer)


def _scored(item: QualityItem, response: Response, n: int) -> Scored:
    if not isinstance(response, Scored) or not len(response.log_probs) == len(response.token_counts) == n:
        raise UsageError(f"item {item.id!r} needs {n} scored continuations for an answer, not {response!r}")
    return response


def _best(scores: Sequence[float], item: QualityItem) -> int:
    """Index of the highest score; the first of equals. NaN would win silently, so it is refused."""
    if any(np.isnan(scores)):
        raise UsageError(f"the engine answered item {item.id!r} with NaN; its arithmetic overflowed")
    return int(np.argmax(scores))


def _text_and_references(item: QualityItem, response: Response) -> tuple[str, list[str]]:
    assert isinstance(item, GenerateItem)
    if not isinstance(response, Generated):
        raise UsageError(f"item {item.id!r} needs generated text for an answer, not {response!r}")
    return response.text.strip(), list(item.references)


def _best_reference(item: QualityItem, response: Response, compare: Callable[[str, str], float]) -> float:
    answer, references = _text_and_references(item, response)
    return max(compare(answer, reference) for reference in references)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares answers."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _normalised(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shift rows so that they sum to 1: also accepts logits, and mends single-precision rounding."""
    top = log_probs.max(axis=1, keepdims=True)
    shifted: NDArray[np.float64] = log_probs - top
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


@cache
def _sacrebleu_scorer(name: str) -> Any:
    scorers = require("sacrebleu.metrics", extra="quality")
    # Of a single sentence, BLEU counts only the n-gram orders that fit into it.
    return scorers.BLEU(effective_order=True) if name == "BLEU" else scorers.CHRF()


@cache
def _rouge_scorer() -> Any:
    return require("rouge_score.rouge_scorer", extra="quality").RougeScorer(["rougeL"], use_stemmer=True)
