"""`Threshold`: how sure a small model must be for its answer to stand, chosen on questions both answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from negawatt.workload.intervals import normal_quantile

PRUDENCE = 1.0
"""Changed answers that are added to those seen: of few questions the luckiest threshold looks too good."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A question that both models answered.

    Attributes:
        margin: by how much the small model's answer leads the next best, in nats.
        small, large: their scores; higher is better.
    """

    margin: float
    small: float
    large: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """A margin below which questions are passed on, and what is foreseen of it.

    Attributes:
        margin: nats; every answer with less is passed on.
        passed: share of the questions that are passed on.
        drop: of the mean score against the large model alone, as seen.
        bound: on the drop that questions held out would prove, as foreseen.
        cost: of a question.
    """

    margin: float
    passed: float
    drop: float
    bound: float
    cost: float


def thresholds(tried: Sequence[Tried], small_cost: float, large_cost: float, held_out: int, confidence: float,
               prudence: float = PRUDENCE) -> list[Threshold]:  # fmt: skip
    """Every threshold that divides the questions, from none passed on to all, the cheapest first.

    A question costs the small model's answer, and the large one's where it is passed on. The bound adds to
    the drop that was seen its sampling error, on these questions and on those held out, at the confidence
    of the proof.

    Args:
        tried: at least one question.
        small_cost, large_cost: of an answer, in one unit.
        held_out: questions that the drop will be proved on, at least one.
        confidence: of the one-sided bound there.
        prudence: changed answers that are added to those seen.
    """
    ordered = sorted(tried, key=lambda t: t.margin)
    margins = np.array([t.margin for t in ordered])
    lost = np.array([t.large - t.small for t in ordered])
    n = len(ordered)
    # Of those from each place on, which are kept: the sum of what they lose, and of its squares.
    total = np.append(np.cumsum(lost[::-1])[::-1], 0.0)
    squares = np.append(np.cumsum((lost**2)[::-1])[::-1], 0.0)
    ends = np.append(margins, math.inf)
    z, found = normal_quantile(confidence), []
    for place in range(n + 1):
        if 0 < place < n and margins[place] == margins[place - 1]:
            continue  # equal margins are passed on together
        drop = float(total[place]) / n
        rate = (float(squares[place]) + (prudence if place < n else 0.0)) / n
        spread = math.sqrt(max(0.0, rate - drop * drop) * (1 / n + 1 / held_out)) + z / held_out
        passed = place / n
        found.append(
            Threshold(float(ends[place]), passed, drop, drop + z * spread, small_cost + passed * large_cost)
        )
    return found


def cheapest(found: Sequence[Threshold], limit: float) -> Threshold | None:
    """The cheapest whose foreseen bound is at most `limit`; None where none is."""
    good = [each for each in found if each.bound <= limit]
    return min(good, key=lambda each: each.cost, default=None)
