"""Levels of looks against simulation and integration; the bound of a quantile against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import UsageError
from negawatt.workload.intervals import normal_quantile
from negawatt.workload.sequential import (
    needed_for_quantile,
    nominal_levels,
    quantile_upper_bound,
    shares_of_error,
)


def test_one_look_uses_all_of_the_error() -> None:
    assert nominal_levels((1.0,), 0.05)[0] == pytest.approx(0.05, abs=1e-4)


def test_two_even_looks_agree_with_the_known_bounds() -> None:
    """The second bound follows from the bivariate normal with correlation √½, integrated here directly."""
    first, second = nominal_levels((0.5, 1.0), 0.025, rho=1.0)
    assert first == pytest.approx(0.0125, abs=1e-4)
    z = np.linspace(-8, normal_quantile(1 - first), 4001)
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    bound = normal_quantile(1 - second)
    beyond = [0.5 * math.erfc((bound - v * math.sqrt(0.5)) / math.sqrt(0.5) / math.sqrt(2)) for v in z]
    steps = np.diff(z)
    product = density * np.asarray(beyond)
    crossed = float(((product[1:] + product[:-1]) / 2 * steps).sum())
    assert crossed == pytest.approx(0.0125, abs=2e-4)


@pytest.mark.parametrize("shares", [(0.125, 0.25, 0.5, 1.0), (0.3, 0.9), (0.2, 0.4, 0.6, 0.8, 1.0)])
def test_all_looks_together_err_as_often_as_allowed(shares: tuple[float, ...]) -> None:
    bounds = np.asarray([normal_quantile(1 - level) for level in nominal_levels(shares, 0.05)])
    steps = np.sqrt(np.diff((0.0, *shares)))
    walks = np.cumsum(np.random.default_rng(0).normal(size=(60_000, len(shares))) * steps, axis=1)
    crossed = float((walks / np.sqrt(shares) > bounds).any(axis=1).mean())
    assert crossed == pytest.approx(0.05 * shares[-1] ** 1.5, abs=0.003)


def test_looks_that_share_data_may_use_more_than_equal_shares() -> None:
    assert nominal_levels((0.125, 0.25, 0.5, 1.0), 0.05)[-1] > 0.05 / 4


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (0.0, 1.0), (0.5, 1.2), (0.8, 0.4)])
def test_impossible_looks_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="looks"):
        nominal_levels(shares, 0.05)


def test_the_shares_of_any_number_of_candidates_stay_below_the_whole() -> None:
    assert sum(shares_of_error(k) for k in range(1, 3000)) < 1
    assert sum(shares_of_error(k) for k in range(1, 3000)) > 0.99
    with pytest.raises(UsageError):
        shares_of_error(0)


def test_fifty_nine_requests_are_needed_for_a_95th_percentile() -> None:
    assert needed_for_quantile(0.95, 0.95) == 59
    assert quantile_upper_bound(range(59), 0.95, 0.95) == 58
    assert quantile_upper_bound(range(58), 0.95, 0.95) == math.inf
    assert quantile_upper_bound(range(93), 0.95, 0.95) == 91  # the second largest, from 93 on


@given(st.integers(1, 200), st.floats(0.5, 0.97), st.floats(0.5, 0.99))
def test_the_bound_of_a_quantile_covers_it_as_often_as_it_says(
    n: int, share: float, confidence: float
) -> None:
    """Of n uniform numbers, the r-th smallest lies above `share` when fewer than r lie below it."""
    bound = quantile_upper_bound(range(1, n + 1), share, confidence)
    if math.isinf(bound):
        assert 1 - share**n < confidence
        return
    below = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(int(bound)))
    assert below >= confidence - 1e-9
    less = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(int(bound) - 1))
    assert less < confidence
