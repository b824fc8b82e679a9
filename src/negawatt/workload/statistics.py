"""Comparing in pairs: is the candidate worse, by how much at most, and how many items would show it.

Quality: `paired_difference`. Energy and time: `ratio_interval`. Planning: `minimal_detectable_drop`
and `items_needed`. A difference inside the noise is worded "no difference shown".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from negawatt.errors import UsageError
from negawatt.workload.intervals import (
    Array,
    expanded_z,
    normal_quantile,
    resampled_means,
    student_quantile,
)

CONTINUITY = 0.5
"""Items by which the score statistic is moved towards the limit tested.

Counts are whole numbers, and the statistic's distribution is continuous. Without the correction the
one-sided bound at 95 % fails in up to 7.6 % of cases when few items are discordant; with it in at most
5.3 %, over the exact distributions that the tests enumerate, and nearly always in less than 5 %.
"""

FEW_CHANGES = 10
"""Changed scores below which a bootstrap has too little to draw from."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a candidate's scores differ from the baseline's on the same items.

    Attributes:
        mean: mean of candidate − baseline, in the metric's unit.
        low, high: two-sided interval of `mean`.
        drop: how much worse the candidate is on average; negative where it is better.
        upper_one_sided: one-sided upper confidence bound of `drop`: the drop is at most this.
        n: items compared.
        changed: items whose score differs at all.
        confidence: of the interval, and of the one-sided bound.
        method: how the interval was found.
        size: of the scores that changed by how much, as the root of the mean square; 1 where none did.
    """

    mean: float
    low: float
    high: float
    drop: float
    upper_one_sided: float
    n: int
    changed: int
    confidence: float
    method: str
    size: float = 1.0

    def drop_is_proved_below(self, limit: float) -> bool:
        """Whether the drop is at most `limit` with the stated confidence."""
        return self.upper_one_sided <= limit

    @property
    def is_shown(self) -> bool:
        """Whether the two-sided interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def text(self) -> str:
        """The difference in words."""
        items = f"{self.n:,} paired items, {self.changed:,} changed"
        if not self.is_shown:
            return (
                f"no difference shown ({self.mean:+.4f}, {100 * self.confidence:.3g} % interval "
                f"{self.low:+.4f} to {self.high:+.4f}; {items})"
            )
        verb = "worse" if self.drop > 0 else "better"
        return (
            f"{verb} by {abs(self.mean):.4f} ({100 * self.confidence:.3g} % interval "
            f"{self.low:+.4f} to {self.high:+.4f}; {items})"
        )


def paired_difference(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    confidence: float = 0.95,
    higher_is_better: bool = True,
) -> Difference:
    """Compare two lists of scores item by item.

    Scores that are all 0 or 1 get Tango's score interval for a difference of correlated proportions
    (T. Tango, Statistics in Medicine 17, 1998), moved by `CONTINUITY`. Others get a bias-corrected
    and accelerated bootstrap (B. Efron, J. Am. Stat. Assoc. 82, 1987) with a fixed seed, widened for
    small samples. Where fewer than `FEW_CHANGES` scores changed there is too little to resample: of
    scores from 0 to 1 the drop is then bounded by the share of items that may get worse.

    Args:
        baseline: scores of the items under the baseline.
        candidate: scores of the same items, in the same order.
        confidence: above 0.5 and below 1.
        higher_is_better: False for perplexity and divergence.

    Raises:
        UsageError: lengths differ, there are no items, a score is not finite, or the confidence is
            out of range.
    """
    a, b = _paired(baseline, candidate, confidence)
    difference = b - a
    changed = int(np.count_nonzero(difference))
    drop = 0.0 - float(difference.mean()) if higher_is_better else float(difference.mean())
    in_range = bool(np.all((a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)))
    binary = bool(np.all(np.isin(a, (0, 1)) & np.isin(b, (0, 1))))
    tail = 1 - confidence
    up, down = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    if binary or (in_range and changed < FEW_CHANGES):
        # A score moves by at most 1, so the mean rises by no more than the share of items that rise.
        low = -_tango_upper(down, up if binary else 0, a.size, tail / 2)
        high = _tango_upper(up, down if binary else 0, a.size, tail / 2)
        worse, better = (down, up) if higher_is_better else (up, down)
        bound = _tango_upper(worse, better if binary else 0, a.size, tail)
        method = "Tango score interval" if binary else "share of changed items"
    elif changed == 0:
        low, high, bound, method = 0.0, 0.0, 0.0, "identical scores"
    else:
        low, high, below, above = _bca(difference, (tail / 2, 1 - tail / 2, tail, 1 - tail))
        bound, method = (-below if higher_is_better else above), "BCa bootstrap"
    size = math.sqrt(float(np.sum(difference**2)) / changed) if changed else 1.0
    return Difference(
        float(difference.mean()), low, high, drop, bound, a.size, changed, confidence, method, size
    )


def minimal_detectable_drop(
    n: int, discordance: float, *, confidence: float = 0.95, power: float = 0.8
) -> float:
    """Smallest limit on the drop that a candidate as good as the baseline would be proved to keep.

    Args:
        n: items compared, scored 0 or 1.
        discordance: share of items that one answers rightly and the other wrongly.
        confidence: of the one-sided bound.
        power: probability of succeeding.

    Follows the normal approximation of McNemar's test (R. J. Connor, Biometrics 43, 1987); never
    below what no change in n items would prove.
    """
    _check_plan(confidence, power, discordance)
    if n < 1:
        raise UsageError(f"a comparison needs at least one item, not {n}")
    z = normal_quantile(confidence) + normal_quantile(power)
    limit = z * math.sqrt(discordance / n) + CONTINUITY / n
    return min(1.0, max(limit, _tango_upper(0, 0, n, 1 - confidence)))


def items_needed(limit: float, discordance: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Fewest items whose `minimal_detectable_drop` is at most `limit` (above 0, at most 1)."""
    if not 0 < limit <= 1:
        raise UsageError(f"the limit on the drop must lie above 0 and up to 1, not {limit}")
    low, high = 0, 1
    while minimal_detectable_drop(high, discordance, confidence=confidence, power=power) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = minimal_detectable_drop(middle, discordance, confidence=confidence, power=power) <= limit
        low, high = (low, middle) if enough else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two quantities measured in interleaved pairs.

    Attributes:
        value: geometric mean of the pairs' ratios, or their median where `method` says so.
        low, high: its interval.
        n: pairs.
        confidence: what the interval attains; below what was asked where a median of few pairs
            cannot reach it.
        method: how the interval was found.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float
    method: str

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low > 1 or self.high < 1

    @property
    def text(self) -> str:
        """The ratio in words."""
        numbers = f"{self.low:.3g} to {self.high:.3g}, {self.n} pairs"
        if not self.is_shown:
            return f"no difference shown (ratio {self.value:.3g}; {numbers})"
        return f"ratio {self.value:.3g} ({numbers})"


def ratio_interval(
    a_samples: Sequence[float], b_samples: Sequence[float], *, confidence: float = 0.95, robust: bool = False
) -> Ratio:
    """How many times larger is a than b? Sample i of each was taken side by side.

    By default the geometric mean of the pairs' ratios with Student's t interval on their logarithms.
    With `robust` the median with the interval between order statistics that the sign test gives,
    which one disturbed pair cannot move far; fewer than 6 pairs cannot reach 95 %, and the interval
    is then the whole range with the confidence it attains.

    Raises:
        UsageError: lengths differ, fewer than 2 pairs, or a sample is not positive and finite.
    """
    a, b = _paired(a_samples, b_samples, confidence)
    if a.size < 2 or min(a.min(), b.min()) <= 0:
        raise UsageError("a ratio needs at least 2 pairs of positive samples")
    logs = np.log(a / b)
    if robust:
        return _median_ratio(logs, confidence)
    middle = float(logs.mean())
    half = (
        student_quantile((1 + confidence) / 2, logs.size - 1) * float(logs.std(ddof=1)) / math.sqrt(logs.size)
    )
    value, low, high = math.exp(middle), math.exp(middle - half), math.exp(middle + half)
    return Ratio(value, min(low, value), max(high, value), logs.size, confidence, "t interval on logarithms")


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product of positive numbers.

    Raises:
        UsageError: there are none, or one is not positive and finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.all(np.isfinite(x)) or x.min() <= 0:
        raise UsageError("a geometric mean needs at least one number, all positive and finite")
    return float(np.exp(np.log(x).mean()))


# -- methods ---------------------------------------------------------------------------------------


def _tango_upper(lost: int, gained: int, n: int, tail: float) -> float:
    """Upper bound, exceeded with probability `tail`, of P(lost) − P(gained).

    The bound is the δ at which the score statistic T(δ), which falls in δ, reaches −z. In T the
    unknown P(gained) is replaced by its maximum-likelihood estimate under δ (Tango 1998, eq. 5 to 7).
    """
    z = normal_quantile(1 - tail)

    def statistic(delta: float) -> float:
        p = 2 * n
        q = -lost - gained + (2 * n - lost + gained) * delta
        r = -gained * delta * (1 - delta)
        estimate = (math.sqrt(max(0.0, q * q - 4 * p * r)) - q) / (2 * p)
        variance = n * (2 * estimate + delta * (1 - delta))
        excess = lost - gained - n * delta + CONTINUITY
        return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)

    low, high = (lost - gained) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > -z else (low, middle)
    return high


def _bca(difference: Array, tails: Sequence[float]) -> list[float]:
    """Bias-corrected and accelerated bootstrap quantiles of the mean of `difference`."""
    n = difference.size
    mean = float(difference.mean())
    if n == 1:
        return [math.copysign(math.inf, tail - 0.5) for tail in tails]
    means = resampled_means(difference, np.ones(n))
    # Ties count half: means of discrete scores fall on the mean itself often.
    below = (np.count_nonzero(means < mean) + 0.5 * np.count_nonzero(means == mean)) / means.size
    bias = normal_quantile(min(max(below, 1e-4), 1 - 1e-4))
    centred = difference - mean
    largest = float(np.abs(centred).max())
    shape = centred / largest if largest > 0 else centred  # powers of tiny differences would vanish
    spread = float(np.sum(shape**2))
    acceleration = float(np.sum(shape**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    quantiles = []
    for tail in tails:
        z = bias + expanded_z(tail, n)
        level = NormalDist().cdf(bias + z / max(1e-9, 1 - acceleration * z))
        quantiles.append(float(np.quantile(means, level)))
    return quantiles


def _median_ratio(logs: Array, confidence: float) -> Ratio:
    ordered = np.exp(np.sort(logs))
    n = ordered.size
    # Leaving out k at each end covers the median with probability 1 − 2·P(Binomial(n, ½) ≤ k).
    cumulative = np.cumsum([math.comb(n, k) / 2**n for k in range(n // 2 + 1)])
    allowed = int(np.sum(2 * cumulative <= 1 - confidence))
    trim = max(0, allowed - 1)
    attained = 1 - 2 * float(cumulative[trim])
    return Ratio(
        float(np.median(ordered)), float(ordered[trim]), float(ordered[-1 - trim]), n,
        min(confidence, attained), "median, sign-test interval",
    )  # fmt: skip


def _paired(first: Sequence[float], second: Sequence[float], confidence: float) -> tuple[Array, Array]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise UsageError(f"pairs need two lists of one length, at least 1, not {a.size} and {b.size}")
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        raise UsageError("a value to compare is not a finite number")
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence must lie between 0.5 and 1, not {confidence}")
    return a, b


def _check_plan(confidence: float, power: float, discordance: float) -> None:
    if not 0.5 < confidence < 1 or not 0.5 <= power < 1 or not 0 <= discordance <= 1:
        raise UsageError(
            "planning needs confidence and power from 0.5 to 1 and a discordance from 0 to 1, not "
            f"{confidence}, {power} and {discordance}"
        )
