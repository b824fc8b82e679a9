"""What a search will be able to prove, told before it spends anything, or that it cannot prove anything."""

from __future__ import annotations

from negawatt.errors import Infeasible, UsageError
from negawatt.tuning.judge import last_confidence
from negawatt.tuning.latency import latency_confidence
from negawatt.tuning.material import Material
from negawatt.tuning.verdict import Constraints
from negawatt.workload import items_needed, metric, minimal_detectable_drop
from negawatt.workload.sequential import needed_for_quantile
from negawatt.workload.statistics import FEW_CHANGES
from negawatt.workload.workload import Workload

FEW, MANY = 0.01, 0.08
"""Shares of the answers that a careful and a coarse candidate change."""
LATENCY_SHARE = 0.95
"""The quantile that limits on latency speak of."""


def prospects(
    material: Material, workload: Workload, limits: Constraints, fewest: int, confidence: float
) -> list[str]:
    """What the items and requests at hand could prove of each limit, in sentences.

    Args:
        fewest: quality items that a proof needs at least.
        confidence: of the verdict as a whole.

    Raises:
        UsageError: `fewest` is below 0, or the limit is more than the metric can fall.
        Infeasible: they could prove nothing.
    """
    n, texts = len(material.held_items), []
    if fewest < 0:
        raise UsageError(f"a proof cannot need {fewest} items; give a number from 0 up")
    if limits.max_quality_drop is not None and n:
        if fewest > n:
            raise Infeasible(
                f"{n:,} quality items are kept for the proof, fewer than the {fewest:,} that it has to have"
            )
        texts.append(prospect_of_quality(workload, n, limits.max_quality_drop, fewest, confidence))
    if limits.p95_ttft_ms is not None or limits.p95_tpot_ms is not None:
        texts.append(prospect_of_latency(len(material.held) + len(material.searched), confidence))
    return texts


def prospect_of_quality(workload: Workload, n: int, limit: float, fewest: int, confidence: float) -> str:
    """What drop `n` held-out items can prove, in a sentence.

    The confidence is that of the last look at the first candidate: later ones need more items.

    Raises:
        UsageError: the limit is more than the metric can fall.
        Infeasible: not even a candidate that changes no answer could be proved to keep the limit.
    """
    kinds = workload.metrics.values()
    counted = bool(workload.quality) and all(metric(name).is_proportion for name in kinds)
    if limit >= 1 and counted:
        raise UsageError(
            f"{' and '.join(sorted(set(kinds)))} cannot fall by {limit:g}: it lies between 0 and 1, and "
            "0.01 is one point of it"
        )
    last = last_confidence(n, fewest, confidence)
    least = minimal_detectable_drop(n, 0.0, confidence=last)
    if least > limit and (counted or n < FEW_CHANGES):
        held = f"{n:,} held-out item{'' if n == 1 else 's'}"
        advice = (
            "no number of items proves that nothing at all is lost; allow a drop above 0"
            if limit == 0
            else f"that takes {items_needed(limit, 0.0, confidence=last):,} of them; give a larger quality "
            f"set, or allow a drop of {least:.1%}"
        )
        raise Infeasible(
            f"{held} cannot prove a drop of at most {limit:.2%}, even of a candidate that changes no answer: "
            f"{advice}"
        )
    few, many = (minimal_detectable_drop(n, share, confidence=last) for share in (FEW, MANY))
    text = (
        f"With {n:,} held-out items a drop of at most {few:.2%} can be proved for a candidate that "
        f"changes 1 % of the answers, {many:.2%} for one that changes 8 %; the limit is {limit:.2%}."
    )
    if 0 < limit <= 1:
        text += f" The latter would need {items_needed(limit, MANY, confidence=last):,} items."
    return text


def prospect_of_latency(n: int, confidence: float) -> str:
    """Whether `n` requests can bound the 95th percentile of a latency, in a sentence."""
    needed = needed_for_quantile(LATENCY_SHARE, latency_confidence(confidence, 1))
    if n >= needed:
        return f"{n:,} requests bound the 95th percentile of a latency at {confidence:.0%} confidence."
    return (
        f"{n:,} requests bound the 95th percentile of a latency at {1 - LATENCY_SHARE**n:.1%} confidence; "
        f"{confidence:.0%} over all candidates would take {needed:,}."
    )
