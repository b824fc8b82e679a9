"""Intervals for one sample: quantiles, Wilson's interval for a proportion, bootstrap for a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from negawatt.errors import UsageError

RESAMPLES = 4000
SEED = 20_170_905
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with a two-sided interval around it, over `n` items."""

    value: float
    low: float
    high: float
    n: int


def normal_quantile(probability: float) -> float:
    """The standard normal's quantile."""
    return NormalDist().inv_cdf(probability)


@cache
def _gauss_legendre() -> tuple[Array, Array]:
    """Nodes and weights of 64 points, on −1 to 1."""
    return np.polynomial.legendre.leggauss(64)


def student_cdf(t: float, degrees: int) -> float:
    """Student's t distribution function.

    With t = √ν·tan θ the density becomes a power of cos θ, smooth enough for Gauss-Legendre.
    """
    angle = math.atan(t / math.sqrt(degrees))
    nodes, node_weights = _gauss_legendre()
    theta = angle * (nodes + 1) / 2
    area = angle / 2 * float(np.sum(node_weights * np.cos(theta) ** (degrees - 1)))
    log_beta = math.lgamma(0.5) + math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2)
    return 0.5 + area / math.exp(log_beta)


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """Student's t quantile, by bisection; `degrees` at least 1, `probability` inside 0 to 1."""
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927).

    Raises:
        UsageError: there are no items.
    """
    if n < 1:
        raise UsageError("a proportion needs at least one item")
    z2 = normal_quantile((1 + confidence) / 2) ** 2
    share = successes / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and n successes the ends are exactly 0 and 1; rounding must not push them past.
    return Interval(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), n)


def bootstrap_mean(
    values: Sequence[float], *, weights: Sequence[float] | None = None, confidence: float = 0.95
) -> Interval:
    """Weighted mean with an expanded percentile bootstrap interval; the same seed every time.

    Items are resampled together with their weights. The percentiles are widened for the sample's
    size as T. Hesterberg proposes (The American Statistician 69, 2015, section 3.3).

    Raises:
        UsageError: no values, a value that is not finite, or not one weight for each value.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.size == 0 or x.shape != w.shape or not np.all(np.isfinite(x)):
        raise UsageError("a mean needs at least one value, all finite, and one weight for each")
    value = float(np.average(x, weights=w))
    if x.size == 1:
        return Interval(value, -math.inf, math.inf, 1)
    means = resampled_means(x, w)
    tail = NormalDist().cdf(expanded_z((1 - confidence) / 2, x.size))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)), x.size)


def resampled_means(x: Array, w: Array) -> Array:
    """Weighted means of `RESAMPLES` samples drawn from `x` with replacement, shape ``(RESAMPLES,)``."""
    random = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    block = max(1, 2_000_000 // x.size)  # bounds the index array to 16 MB
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        rows = random.integers(0, x.size, size=(count, x.size))
        means[start : start + count] = (x * w)[rows].sum(axis=1) / w[rows].sum(axis=1)
    return means


def expanded_z(tail: float, n: int) -> float:
    """The normal deviate whose bootstrap percentile, of `n` values, is as far out as Student's t would be."""
    return math.sqrt(n / (n - 1)) * student_quantile(tail, n - 1)
