"""The arithmetic of `Energy`: what every figure this project prints rests on."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Energy, Provenance

JOULES = st.floats(-1e9, 1e9, allow_nan=False)
REASONS = st.sampled_from(["", "permission denied", "model A, model B", "the counter vanished"])


@st.composite
def known(draw: st.DrawFn) -> Energy:
    low, value, high = sorted(draw(st.tuples(JOULES, JOULES, JOULES)))
    provenance = draw(st.sampled_from([Provenance.MEASURED, Provenance.DERIVED, Provenance.ESTIMATED]))
    return Energy(value, low, high, provenance, draw(REASONS))


@st.composite
def missing(draw: st.DrawFn) -> Energy:
    low = draw(st.none() | st.floats(0, 1e9))
    return Energy(None, low, None, Provenance.MISSING, draw(REASONS))


ENERGIES = known() | missing()
FACTORS = st.floats(-1e3, 1e3, allow_nan=False)


def assert_same(left: Energy, right: Energy) -> None:
    """Equal but for rounding of the numbers."""
    assert left.provenance is right.provenance
    assert left.reason == right.reason
    for a, b in zip(
        (left.value_j, left.low_j, left.high_j), (right.value_j, right.low_j, right.high_j), strict=True
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-3)


@given(ENERGIES, ENERGIES, ENERGIES)
def test_addition_is_associative(a: Energy, b: Energy, c: Energy) -> None:
    assert_same((a + b) + c, a + (b + c))


@given(ENERGIES, ENERGIES)
def test_addition_is_commutative(a: Energy, b: Energy) -> None:
    assert_same(a + b, b + a)


@given(known())
def test_zero_is_neutral(energy: Energy) -> None:
    assert_same(energy + Energy.zero(), energy)
    assert Energy.total([]) == Energy.zero()


@given(st.lists(ENERGIES, min_size=1, max_size=8))
def test_a_sum_is_as_good_as_its_weakest_part(parts: list[Energy]) -> None:
    assert Energy.total(parts).provenance == max(part.provenance for part in parts)


@given(ENERGIES, ENERGIES, FACTORS)
def test_missing_never_becomes_a_number(a: Energy, b: Energy, factor: float) -> None:
    for result in (a + b, a - b, b - a):
        assert result.is_missing == (a.is_missing or b.is_missing)
        assert (result.value_j is None) == result.is_missing
    assert a.scaled(factor).is_missing == a.is_missing
    assert all(part.is_missing == a.is_missing for part in a.split([1, 0, 2]))


@given(missing(), missing())
def test_missing_keeps_every_reason(a: Energy, b: Energy) -> None:
    for reason in filter(None, (a.reason, b.reason)):
        assert reason in str(a + b)


def test_an_incomplete_sum_says_what_is_known() -> None:
    whole = Energy.measured(5.0) + Energy.missing("permission denied on energy_uj")
    assert whole.low_j == 5.0
    assert str(whole) == "not measured: permission denied on energy_uj (at least 5 J)"


def test_a_whole_without_an_unknown_part_has_no_lower_bound() -> None:
    assert (Energy.measured(5.0) - Energy.missing("idle is unknown")).low_j is None


@given(known(), known(), FACTORS)
def test_intervals_contain_values(a: Energy, b: Energy, factor: float) -> None:
    for energy in (a + b, a - b, a.scaled(factor), *a.split([0.1, 3.0])):
        assert energy.low_j <= energy.value_j <= energy.high_j


@given(known(), known(), st.floats(0, 1), st.floats(0, 1))
def test_a_sum_holds_the_sum_of_any_two_truths(a: Energy, b: Energy, p: float, q: float) -> None:
    truth = (a.low_j + p * (a.high_j - a.low_j)) + (b.low_j + q * (b.high_j - b.low_j))
    whole = a + b
    assert whole.low_j - 1e-3 <= truth <= whole.high_j + 1e-3


@given(known(), st.lists(st.floats(0, 1e300), min_size=1, max_size=20).filter(any))
def test_a_split_conserves(whole: Energy, weights: list[float]) -> None:
    parts = whole.split(weights)
    tolerance = 1e-9 * max(abs(whole.low_j), abs(whole.high_j))
    for end in ("value_j", "low_j", "high_j"):
        total = math.fsum(getattr(part, end) for part in parts)
        assert abs(total - getattr(whole, end)) <= tolerance + 1e-12


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [math.nan], [math.inf, 1]])
def test_a_split_refuses_weights_that_make_no_shares(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        Energy.measured(1).split(weights)


@given(ENERGIES)
def test_json_round_trip(energy: Energy) -> None:
    document = json.dumps(energy.to_json(), allow_nan=False)
    assert Energy.from_json(json.loads(document)) == energy


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"value_j": 1, "low_j": 1, "high_j": 1},
        {"value_j": 1, "low_j": 1, "high_j": 1, "provenance": "guessed"},
        {"value_j": "1", "low_j": 1, "high_j": 1, "provenance": "measured"},
        {"value_j": True, "low_j": 1, "high_j": 1, "provenance": "measured"},
        {"value_j": 3, "low_j": 4, "high_j": 5, "provenance": "measured"},
        {"value_j": None, "low_j": 0, "high_j": 1, "provenance": "measured"},
        {"value_j": 0, "low_j": 0, "high_j": 0, "provenance": "missing"},
        [],
    ],
)
def test_damaged_records_are_refused(damaged: object) -> None:
    with pytest.raises(ValueError):
        Energy.from_json(damaged)  # type: ignore[arg-type]


@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3).filter(lambda f: abs(f) != 1))
def test_a_share_of_a_measurement_is_derived(joules: float, factor: float) -> None:
    assert Energy.measured(joules).scaled(factor).provenance is Provenance.DERIVED


@pytest.mark.parametrize(
    ("energy", "text"),
    [
        (Energy.measured(12.4), "12.4 J"),
        (Energy.estimated(12, 8, 21), "~12 J (8–21)"),
        (Energy.missing("permission denied on /sys/x"), "not measured: permission denied on /sys/x"),
        (Energy.measured(123456.7), "123,457 J"),
    ],
)
def test_figures_print_with_their_mark(energy: Energy, text: str) -> None:
    assert str(energy) == text
