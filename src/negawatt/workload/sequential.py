"""Looking at data while they come in, without being wrong more often for it: an error that is spent.

A test that may stop at any of several looks errs more often than one that looks once. Here the error allowed
is divided over the looks by a spending function (K. K. G. Lan, D. L. DeMets, Biometrika 70, 1983), and the
level of each look follows exactly from the joint normal distribution of the statistic at the looks so far
(P. Armitage, C. K. McPherson, B. C. Rowe, J. R. Stat. Soc. A 132, 1969): looks share their data, so that each
may use more than an equal share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from negawatt.errors import UsageError
from negawatt.workload.intervals import Array, normal_quantile

RHO = 1.5
"""Of the spending function: error · share^ρ of the data seen (K. Kim, D. L. DeMets, Biometrika 74, 1987).

With 1 the looks are treated evenly, with 3 nearly all is kept for the last (O'Brien and Fleming). Candidates
that change no answer are proved at an early look and save the rest; those that change some need the last.
"""
_GRID = 600
_REACH = 8.0
"""The statistic is integrated over so many standard deviations."""


@cache
def nominal_levels(shares: tuple[float, ...], error: float, rho: float = RHO) -> tuple[float, ...]:
    """One-sided levels of the looks, so that all of them together err with probability `error`.

    Args:
        shares: of the data seen at each look, rising, the last at most 1.
        error: in all, above 0 and below 0.5.
        rho: of the spending function.

    Raises:
        UsageError: the shares do not rise from above 0 to at most 1, or the error is out of range.
    """
    rising = all(a < b for a, b in zip((0.0, *shares), shares, strict=False))
    if not shares or not rising or shares[-1] > 1 or not 0 < error < 0.5:
        raise UsageError(
            f"looks need shares that rise from above 0 to at most 1, not {shares}, and an error, {error}"
        )
    levels: list[float] = []
    spent = 0.0
    density = at = np.zeros(0)
    for number, share in enumerate(shares):
        budget = error * share**rho - spent if share < 1 else error - spent
        before = shares[number - 1] if number else 0.0
        bound = _bound(density, at, math.sqrt(share - before), budget, math.sqrt(share))
        levels.append(_tail(bound / math.sqrt(share)))
        density, at = _stepped(density, at, math.sqrt(share - before), bound, math.sqrt(share))
        spent += budget
    return tuple(levels)


def _bound(density: Array, at: Array, step: float, budget: float, sd: float) -> float:
    """Where the walk, not stopped so far, lies above with probability `budget`."""
    low, high = -_REACH * sd, _REACH * sd
    for _ in range(50):
        middle = (low + high) / 2
        if density.size:
            above = float(_integral(density * _tails((middle - at) / step), at))
        else:
            above = _tail(middle / step)
        low, high = (middle, high) if above > budget else (low, middle)
    return high


def _stepped(density: Array, at: Array, step: float, bound: float, sd: float) -> tuple[Array, Array]:
    """Density of the walk after its next step, where it has not crossed: values, and where they lie."""
    grid = np.linspace(-_REACH * sd, bound, _GRID)
    if not density.size:
        return np.exp(-0.5 * (grid / step) ** 2) / (step * math.sqrt(2 * math.pi)), grid
    moves = np.exp(-0.5 * ((grid[:, None] - at[None, :]) / step) ** 2) / (step * math.sqrt(2 * math.pi))
    return _integral(moves * density[None, :], at), grid


def _integral(values: Array, at: Array) -> Array:
    """By the trapezium rule, along the last axis."""
    return np.asarray(np.trapezoid(values, at, axis=-1) if hasattr(np, "trapezoid") else np.trapz(values, at))  # type: ignore[attr-defined]


def _tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def _tails(z: Array) -> Array:
    return np.asarray([_tail(v) for v in z])


def needed_for_quantile(share: float, confidence: float) -> int:
    """Fewest values whose largest bounds the quantile at `share` with that confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(share))


def quantile_upper_bound(values: Sequence[float], share: float, confidence: float) -> float:
    """One-sided upper confidence bound of a quantile, free of any assumption on the distribution.

    The least order statistic that lies above the quantile at `share` with the confidence asked for (W. J.
    Conover, Practical Nonparametric Statistics, section 3.2); infinite where there are too few values.

    Raises:
        UsageError: share or confidence are not inside 0 to 1.
    """
    if not 0 < share < 1 or not 0 < confidence < 1:
        raise UsageError(f"a bound of a quantile needs numbers inside 0 to 1, not {share} and {confidence}")
    ordered, below = sorted(values), 0.0
    for rank in range(len(ordered)):
        below += math.comb(len(ordered), rank) * share**rank * (1 - share) ** (len(ordered) - rank)
        if below >= confidence:  # P(at most `rank` values lie at or below the quantile)
            return float(ordered[rank])
    return math.inf


def shares_of_error(number: int) -> float:
    """Share of the allowed error that the `number`-th candidate (from 1) may use: 6/(πk)².

    The shares of any number of candidates add up to at most 1, so that the chance to accept any that breaks
    its limit is at most the error allowed, however many fail before one is accepted.
    """
    if number < 1:
        raise UsageError(f"candidates are counted from 1, not {number}")
    return 6 / (math.pi * number) ** 2


def largest_z(error: float) -> float:
    """The deviate that a statistic exceeds with probability `error`."""
    return normal_quantile(1 - error)
