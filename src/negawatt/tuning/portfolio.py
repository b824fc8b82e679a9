"""What a search would end with now: of its ways, each with a cost and a chance, the cheapest proved."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from negawatt.tuning.process import Array


def weights(costs: Array, chances: Array) -> Array:
    """Probability of each way to be proved while no cheaper one is; what they lack to 1: none is.

    Proofs are taken for independent of each other.

    Args:
        costs, chances: shape ``(ways,)``.
    """
    order = np.argsort(costs, kind="stable")
    failed = np.cumprod(1.0 - chances[order])
    found = np.empty(len(costs))
    found[order] = chances[order] * np.concatenate(([1.0], failed[:-1]))[: len(costs)]
    return found


def expected_cost(ways: Iterable[tuple[float, float]]) -> float:
    """Mean cost of the cheapest that is proved, given that one is; infinite where none can be.

    Args:
        ways: cost and chance of each.
    """
    known = [(cost, chance) for cost, chance in ways if chance > 0]
    if not known:
        return math.inf
    costs, chances = np.asarray(known).T
    found = weights(costs, chances)
    return float(found @ costs / found.sum())
