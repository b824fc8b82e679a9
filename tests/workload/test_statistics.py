"""The statistics keep their promises: intervals cover, bounds hold, plans come true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from negawatt.errors import UsageError
from negawatt.workload import (
    Difference,
    bootstrap_mean,
    geometric_mean,
    items_needed,
    minimal_detectable_drop,
    paired_difference,
    ratio_interval,
    wilson,
)
from negawatt.workload.intervals import student_cdf, student_quantile

zeros_and_ones = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
finite = st.floats(-100, 100)


def from_counts(lost: int, gained: int, n: int, confidence: float = 0.95) -> Difference:
    """The comparison of n items, of which some are lost and some gained."""
    same = n - lost - gained
    baseline = [1] * lost + [0] * gained + [1] * same
    candidate = [0] * lost + [1] * gained + [1] * same
    return paired_difference(baseline, candidate, confidence=confidence)


# -- quality: zeros and ones -----------------------------------------------------------------------


def test_tangos_interval_without_correction_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two examples of Tango's paper: 32 pairs of treatments, 44 pairs of contact lenses."""
    monkeypatch.setattr("negawatt.workload.statistics.CONTINUITY", 0.0)
    first = from_counts(lost=3, gained=9, n=32)
    assert (round(first.low, 3), round(first.high, 3)) == (-0.027, 0.390)
    lenses = from_counts(lost=1, gained=0, n=44, confidence=0.90)
    assert (round(lenses.low, 3), round(lenses.high, 3)) == (-0.096, 0.037)


def exact_failures(n: int, worse: list[tuple[float, float]]) -> list[float]:
    """Probability that the one-sided bound lies below the true drop, summed over all outcomes.

    For each pair of true P(lost), P(gained), over the trinomial distribution of the two counts.
    """
    most = min(
        n, int(n * max(p + q for p, q in worse) + 7 * math.sqrt(n * max(p + q for p, q in worse)) + 12)
    )
    counts = [(b, c) for b in range(most + 1) for c in range(most + 1 - b)]
    bounds = np.array([from_counts(b, c, n).upper_one_sided for b, c in counts])
    b, c = np.array(counts).T
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ways = log_factorial[n] - log_factorial[b] - log_factorial[c] - log_factorial[n - b - c]
    failures = []
    for p, q in worse:
        chance = np.exp(ways + b * math.log(p) + c * math.log(q) + (n - b - c) * math.log1p(-p - q))
        failures.append(float(chance[bounds < p - q].sum()))
    return failures


@pytest.mark.parametrize("n", [40, 300])
def test_the_one_sided_bound_fails_in_at_most_5_percent(n: int) -> None:
    """From a third of a discordant item expected to twelve; from pure loss to more gained than lost."""
    truths = [
        (d * (1 + share) / 2, d * (1 - share) / 2)
        for d in np.geomspace(0.3, 12, 20) / n
        for share in (-0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1 - 1e-9)
    ]
    failures = exact_failures(n, truths)
    assert max(failures) < 0.055
    assert np.mean(np.array(failures) > 0.05) < 0.02
    assert max(failures) > 0.03  # nor is it idle caution


def test_the_one_sided_bound_in_a_simulated_search() -> None:
    """2,000 comparisons of 1,000 items that truly lose 1 point, 3 % of the items discordant."""
    random = np.random.default_rng(7)
    lost, gained, _ = random.multinomial(1000, [0.02, 0.01, 0.97], size=2000).T
    failures = np.mean(
        [from_counts(int(b), int(c), 1000).upper_one_sided < 0.01 for b, c in zip(lost, gained, strict=True)]
    )
    assert failures < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert failures > 0.02


def test_no_change_at_all_is_not_proof_of_nothing() -> None:
    same = paired_difference([1, 0] * 150, [1, 0] * 150)
    # If the drop were p, 300 items without a change would have the chance (1 − p)^300.
    assert (1 - same.upper_one_sided) ** 300 <= 0.05
    assert same.upper_one_sided < 0.02
    assert same.drop == same.mean == 0
    assert same.text.startswith("no difference shown")
    assert same.drop_is_proved_below(0.02)
    assert not same.drop_is_proved_below(0.005)


@given(zeros_and_ones)
def test_differences_of_zeros_and_ones(pairs: list[tuple[int, int]]) -> None:
    baseline, candidate = zip(*pairs, strict=True)
    d = paired_difference(baseline, candidate)
    assert -1 <= d.low <= d.mean <= d.high <= 1
    assert d.drop == pytest.approx(-d.mean)
    assert d.drop <= d.upper_one_sided <= -d.low + 1e-12
    assert d.changed == sum(a != b for a, b in pairs)
    mirrored = paired_difference(candidate, baseline)
    assert (mirrored.low, mirrored.high) == pytest.approx((-d.high, -d.low))
    reversed_sense = paired_difference(candidate, baseline, higher_is_better=False)
    assert reversed_sense.upper_one_sided == pytest.approx(d.upper_one_sided)
    assert reversed_sense.drop == pytest.approx(d.drop)


@given(zeros_and_ones, st.floats(0.55, 0.95))
def test_more_confidence_and_fewer_items_widen(pairs: list[tuple[int, int]], confidence: float) -> None:
    baseline, candidate = zip(*pairs, strict=True)
    d = paired_difference(baseline, candidate, confidence=confidence)
    surer = paired_difference(baseline, candidate, confidence=confidence + 0.04)
    more = paired_difference(baseline * 2, candidate * 2, confidence=confidence)
    assert surer.low <= d.low <= more.low + 1e-12
    assert surer.upper_one_sided >= d.upper_one_sided >= more.upper_one_sided - 1e-12


# -- quality: other scores -------------------------------------------------------------------------


def test_the_bootstrap_covers() -> None:
    """600 comparisons of 60 skewed differences; the true mean is outside in about 5 % on one side."""
    random = np.random.default_rng(3)
    below = outside = 0
    for _ in range(600):
        difference = random.gamma(2.0, 1.0, size=60) - 2.0
        d = paired_difference(np.zeros(60), difference)
        below += d.upper_one_sided < 0  # the true drop is 0
        outside += not d.low <= 0 <= d.high
    assert below / 600 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert outside / 600 < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 600)
    assert outside / 600 > 0.02


@example([(0.0, 0.0), (0.0, -2.25e-139)], False)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=30), st.booleans())
def test_differences_of_any_scores(pairs: list[tuple[float, float]], higher_is_better: bool) -> None:
    baseline, candidate = zip(*pairs, strict=True)
    d = paired_difference(baseline, candidate, higher_is_better=higher_is_better)
    assert d.low <= d.high
    assert d == paired_difference(baseline, candidate, higher_is_better=higher_is_better)
    assert d.drop == pytest.approx(-d.mean if higher_is_better else d.mean)
    worst = -d.low if higher_is_better else d.high
    assert d.upper_one_sided <= worst + 1e-9


def test_few_changes_among_bounded_scores_prove_little() -> None:
    baseline = [0.5] * 300
    one_better = paired_difference(baseline, [0.9] + [0.5] * 299)
    assert one_better.method == "share of changed items"
    assert 0.009 < one_better.upper_one_sided < 0.015
    assert one_better.drop < 0


def test_identical_unbounded_scores_are_called_identical() -> None:
    d = paired_difference([2.5, 3.5], [2.5, 3.5], higher_is_better=False)
    assert (d.low, d.high, d.upper_one_sided, d.method) == (0, 0, 0, "identical scores")


def test_a_worse_perplexity_is_a_drop() -> None:
    baseline = np.linspace(2, 4, 40)
    d = paired_difference(baseline, baseline + np.linspace(0.05, 0.15, 40), higher_is_better=False)
    assert d.drop == pytest.approx(0.1)
    assert d.upper_one_sided > 0.1
    assert d.text.startswith("worse by 0.1000 (95 % interval +0.09")
    assert paired_difference(baseline, baseline - 0.1, higher_is_better=False).text.startswith("better")


def test_one_item_says_nothing_about_the_mean() -> None:
    d = paired_difference([2.0], [3.0])
    assert (d.low, d.high) == (-math.inf, math.inf)
    assert not d.drop_is_proved_below(100)


@pytest.mark.parametrize(
    ("baseline", "candidate", "confidence", "sentence"),
    [
        ([], [], 0.95, "two lists of one length, at least 1, not 0 and 0"),
        ([1], [1, 0], 0.95, "not 1 and 2"),
        ([1.0], [math.nan], 0.95, "not a finite number"),
        ([1], [1], 1.0, "confidence must lie between 0.5 and 1, not 1.0"),
    ],
)
def test_faults(baseline: list[float], candidate: list[float], confidence: float, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        paired_difference(baseline, candidate, confidence=confidence)
    assert sentence in str(caught.value)


# -- planning --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "discordance"), [(1000, 0.05), (1500, 0.02), (600, 0.1)])
def test_the_planned_limit_is_proved_as_often_as_promised(n: int, discordance: float) -> None:
    limit = minimal_detectable_drop(n, discordance)
    random = np.random.default_rng(11)
    half = discordance / 2
    lost, gained, _ = random.multinomial(n, [half, half, 1 - discordance], size=600).T
    proved = np.mean(
        [
            from_counts(int(b), int(c), n).drop_is_proved_below(limit)
            for b, c in zip(lost, gained, strict=True)
        ]
    )
    assert 0.7 < proved < 0.9


@given(st.floats(0.003, 0.2), st.floats(0, 0.3))
def test_items_needed_is_the_fewest(limit: float, discordance: float) -> None:
    n = items_needed(limit, discordance)
    assert minimal_detectable_drop(n, discordance) <= limit
    assert n == 1 or minimal_detectable_drop(n - 1, discordance) > limit


def test_faults_of_planning() -> None:
    with pytest.raises(UsageError, match="above 0 and up to 1, not 0"):
        items_needed(0, 0.1)
    with pytest.raises(UsageError, match="at least one item, not 0"):
        minimal_detectable_drop(0, 0.1)
    with pytest.raises(UsageError, match="a discordance from 0 to 1"):
        minimal_detectable_drop(10, 1.5)


# -- ratios ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("robust", "pairs"), [(False, 3), (False, 8), (True, 9)])
def test_ratio_intervals_cover(robust: bool, pairs: int) -> None:
    """The host drifts by a factor of two, the same for both sides of a pair; the ratio is 1.3."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        drift = random.uniform(1, 2, size=pairs)
        a = 1.3 * drift * np.exp(random.normal(0, 0.03, size=pairs))
        b = drift * np.exp(random.normal(0, 0.03, size=pairs))
        ratio = ratio_interval(a, b, robust=robust)
        covered += ratio.low <= 1.3 <= ratio.high
    assert covered / 1000 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert covered / 1000 < 0.999


def test_a_disturbed_pair_hardly_moves_the_median() -> None:
    a = [2.0, 2.02, 1.98, 2.01, 1.99, 2.0, 2.03, 2.01, 20.0]
    b = [1.0] * 9
    robust = ratio_interval(a, b, robust=True)
    assert robust.value == pytest.approx(2.01)
    assert robust.low > 1.9
    assert robust.high < 2.1
    assert ratio_interval(a, b).high > 3


def test_a_median_of_few_pairs_admits_what_it_attains() -> None:
    ratio = ratio_interval([2, 2.1, 2.2, 2.3], [1, 1, 1, 1], robust=True)
    assert ratio.confidence == pytest.approx(1 - 2 / 16)
    assert (ratio.low, ratio.high) == pytest.approx((2, 2.3))


def test_ratios_in_words() -> None:
    assert ratio_interval([1, 1.1, 0.9], [1, 1, 1]).text.startswith("no difference shown (ratio 0.99")
    assert ratio_interval([2, 2.1, 1.9], [1, 1, 1]).text == "ratio 2 (1.76 to 2.26, 3 pairs)"


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=20),
    st.floats(0.01, 100), st.booleans(),
)  # fmt: skip
def test_ratios_ignore_the_unit_and_invert(
    pairs: list[tuple[float, float]], unit: float, robust: bool
) -> None:
    a, b = np.array(pairs).T
    ratio = ratio_interval(a, b, robust=robust)
    scaled = ratio_interval(a * unit, b * unit, robust=robust)
    inverse = ratio_interval(b, a, robust=robust)
    assert ratio.low <= ratio.value <= ratio.high
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((ratio.value, ratio.low, ratio.high))
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((ratio.low, ratio.high))


def test_geometric_mean() -> None:
    assert geometric_mean([1, 4, 16]) == pytest.approx(4)
    for bad in ([], [1, 0], [1, math.inf]):
        with pytest.raises(UsageError, match="geometric mean needs"):
            geometric_mean(bad)
    with pytest.raises(UsageError, match="at least 2 pairs of positive samples"):
        ratio_interval([1], [1])
    with pytest.raises(UsageError, match="at least 2 pairs of positive samples"):
        ratio_interval([1, -1], [1, 1])


# -- one sample ------------------------------------------------------------------------------------


def test_students_quantiles_are_those_of_the_tables() -> None:
    table = {
        (0.975, 1): 12.7062,
        (0.975, 2): 4.3027,
        (0.95, 5): 2.0150,
        (0.995, 10): 3.1693,
        (0.975, 1000): 1.9623,
    }
    for (probability, degrees), value in table.items():
        assert student_quantile(probability, degrees) == pytest.approx(value, abs=5e-5)


@given(st.floats(0.001, 0.999), st.integers(1, 3000))
def test_students_quantile_inverts_its_distribution(probability: float, degrees: int) -> None:
    assert student_cdf(student_quantile(probability, degrees), degrees) == pytest.approx(
        probability, abs=1e-9
    )


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_contains_the_share(successes: int, n: int) -> None:
    interval = wilson(min(successes, n), n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_bootstrap_mean_covers() -> None:
    random = np.random.default_rng(2)
    covered = sum(
        interval.low <= 1 <= interval.high
        for interval in (bootstrap_mean(random.exponential(size=50)) for _ in range(400))
    )
    assert covered / 400 > 0.90
    with pytest.raises(UsageError, match="at least one value"):
        bootstrap_mean([])
    with pytest.raises(UsageError, match="one weight for each"):
        bootstrap_mean([1, 2], weights=[1])
