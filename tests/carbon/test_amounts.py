"""Units, linearity, intervals and conservation: what every reported figure rests on."""

import math
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Energy, Provenance
from negawatt.carbon import (
    BOUNDARIES,
    GRAMS,
    MARGINAL_GRAMS,
    Amount,
    Band,
    Contract,
    CsvIntensity,
    Factor,
    Step,
    Tariff,
    cost,
    countries,
    cue,
    embodied,
    given_pue,
    ledger,
    location_based,
    marginal,
    market_based,
    over,
    pue,
    sci,
    sci_for_ai,
    water,
    wue,
    yearly,
)
from negawatt.carbon.tariff import WORKDAYS
from negawatt.errors import NegawattError, UsageError

KNOWN = [Provenance.MEASURED, Provenance.DERIVED, Provenance.ESTIMATED]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@st.composite
def energies(draw: st.DrawFn, least_j: float = -1e9) -> Energy:
    low, value, high = sorted(draw(st.lists(st.floats(least_j, 1e9), min_size=3, max_size=3)))
    return Energy(value, low, high, draw(st.sampled_from(KNOWN)), draw(st.sampled_from(["", "a", "b"])))


@st.composite
def factors(draw: st.DrawFn, unit: str = f"{GRAMS}/kWh", least: float = 0.0, most: float = 2e3) -> Factor:
    low, value, high = sorted(draw(st.lists(st.floats(least, most), min_size=3, max_size=3)))
    return Factor(value, low, high, unit, draw(st.sampled_from(KNOWN)), "a source")


def close(a: float | None, b: float | None) -> bool:
    assert a is not None
    assert b is not None
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


# -- amounts -------------------------------------------------------------------------------------------


def test_a_kilowatt_hour_at_400_grams_is_400_grams() -> None:
    amount = Factor.exact(400.0, f"{GRAMS}/kWh", "test").of(Energy.measured(3.6e6))
    assert (amount.value, amount.unit) == (400.0, GRAMS)
    assert amount.provenance is Provenance.DERIVED


@given(energies(), factors(least=-2e3), st.floats(0, 1), st.floats(0, 1))
def test_interval_holds_every_product_and_provenance_is_the_worse(
    energy: Energy, factor: Factor, i: float, j: float
) -> None:
    amount = factor.of(energy)
    assert amount.low is not None
    assert amount.high is not None
    e = energy.low_j + i * (energy.high_j - energy.low_j)  # type: ignore[operator]
    f = factor.low + j * (factor.high - factor.low)
    slack = 1e-9 * max(1.0, abs(amount.low), abs(amount.high))
    assert amount.low - slack <= e / 3.6e6 * f <= amount.high + slack
    assert amount.provenance is max(energy.provenance, factor.provenance, Provenance.DERIVED)


@given(energies(0), energies(0), factors())
def test_rates_are_linear(a: Energy, b: Energy, factor: Factor) -> None:
    whole, parts = factor.of(a + b), factor.of(a) + factor.of(b)
    assert close(whole.value, parts.value)
    assert close(whole.low, parts.low)
    assert close(whole.high, parts.high)
    assert whole.provenance is parts.provenance


@given(energies(0), factors())
def test_missing_stays_missing_and_keeps_what_is_known(known: Energy, factor: Factor) -> None:
    amount = factor.of(known + Energy.missing("permission denied"))
    assert amount.is_missing
    assert "permission denied" in str(amount)
    assert close(amount.low, known.low_j / 3.6e6 * factor.low)  # type: ignore[operator]


def test_units_do_not_mix() -> None:
    with pytest.raises(ValueError, match="do not add"):
        Amount.total([Amount.estimated(1, 1, 1, "L")], GRAMS)
    with pytest.raises(ValueError, match="per kWh"):
        given_pue(1.2).of(Energy.measured(1.0))
    with pytest.raises(ValueError, match="does not contain"):
        Amount.estimated(1, 2, 3, GRAMS)
    with pytest.raises(ValueError, match="finite"):
        Factor.exact(math.inf, "1", "")


# -- site, carbon, hardware ----------------------------------------------------------------------------


@given(energies(1), factors("1", 1, 3), factors(), factors("L/kWh"), factors("L/kWh"))
def test_site_figures_undo_each_other(
    it: Energy, overhead: Factor, intensity: Factor, litres: Factor, ewif: Factor
) -> None:
    site = ledger({"wall": it}, {"facility": overhead}).total
    assert close(pue(site, it).value, overhead.value)
    assert close(cue(location_based(site, intensity), it).value, overhead.value * intensity.value)
    assert close(wue(litres.of(it), it).value, litres.value)
    assert it.value_j is not None
    expected = it.value_j / 3.6e6 * (litres.value + overhead.value * ewif.value)  # the PUE once, not twice
    assert close(water(it, site, litres, ewif).value, expected)


def test_impossible_site_figures_are_refused() -> None:
    joule = Energy.measured(1.0)
    with pytest.raises(UsageError, match="swapped"):
        pue(joule, Energy.measured(2.0))
    with pytest.raises(UsageError, match="at least 1"):
        given_pue(0.9)
    with pytest.raises(UsageError, match="above 0"):
        pue(joule, Energy.zero())
    with pytest.raises(UsageError, match="numerator"):
        pue(Energy.missing("no meter"), joule)
    with pytest.raises(UsageError, match="gCO2e"):
        cue(Amount.estimated(1, 1, 1, "L"), joule)


@given(energies(0), factors(), st.lists(st.floats(0, 0.25), max_size=4))
def test_contracts_at_the_residual_mix_change_nothing(
    energy: Energy, mix: Factor, shares: list[float]
) -> None:
    by_market = market_based(energy, [Contract(share, mix, "supplier") for share in shares], mix)
    by_place = location_based(energy, mix)
    assert close(by_market.value, by_place.value)
    assert close(by_market.low, by_place.low)
    assert close(by_market.high, by_place.high)


def test_a_certificate_covers_its_share_and_no_more_than_there_is() -> None:
    grid, wind = yearly("DE"), Factor.exact(0.0, f"{GRAMS}/kWh", "certificate")
    energy = Energy.measured(3.6e6)
    assert close(market_based(energy, [Contract(0.75, wind, "wind")], grid).value, grid.value / 4)
    with pytest.raises(UsageError, match="at most 1"):
        market_based(energy, [Contract(0.75, wind, "wind")] * 2, grid)
    with pytest.raises(UsageError, match="from 0 to 1"):
        Contract(1.5, wind, "wind")


def test_marginal_intensity_stays_apart() -> None:
    rate = Factor.estimated(500, 400, 600, f"{MARGINAL_GRAMS}/kWh", "test")
    energy = Energy.measured(3.6e6)
    aside = marginal(energy, rate)
    assert "marginal" in str(aside)
    with pytest.raises(ValueError, match="do not add"):
        Amount.total([aside, location_based(energy, yearly("DE"))], GRAMS)
    making = Amount.estimated(0, 0, 0, GRAMS)
    for enters in (
        lambda: location_based(energy, rate),
        lambda: market_based(energy, [], rate),
        lambda: sci(energy, rate, making, 1, "request"),
    ):
        with pytest.raises(UsageError, match="sensitivity"):
            enters()
    with pytest.raises(UsageError, match="marginal"):
        marginal(energy, yearly("DE"))


@given(st.floats(1, 1e6), st.integers(1, 64), st.integers(1, 20))
def test_embodied_shares_add_up_to_the_machine(grams: float, cores: int, slices: int) -> None:
    device = Amount.estimated(grams, grams / 2, grams * 2, GRAMS)
    one = embodied(device, reserved_s=100 / slices, lifespan_s=100, resources=1, of_resources=cores)
    whole = Amount.total([one] * (cores * slices), GRAMS)
    assert close(whole.value, device.value)
    assert close(whole.low, device.low)
    assert close(whole.high, device.high)


def test_nobody_reserves_more_than_there_is() -> None:
    device = Amount.estimated(1, 1, 1, GRAMS)
    for reserved_s, resources in ((-1, 1), (11, 1), (5, 3)):
        with pytest.raises(UsageError, match="reserved"):
            embodied(device, reserved_s=reserved_s, lifespan_s=10, resources=resources, of_resources=2)


@given(energies(0), factors(), st.floats(0, 1e6), st.integers(1, 10**9))
def test_sci_is_the_formula_of_the_standard(energy: Energy, mix: Factor, m: float, r: int) -> None:
    rate = sci(energy, mix, Amount.estimated(m, m, m, GRAMS), r, "request").rate
    assert energy.value_j is not None
    assert rate.unit == "gCO2e/request"
    assert close(rate.value, (energy.value_j / 3.6e6 * mix.value + m) / r)


def test_sci_for_ai_keeps_the_personas_apart_and_does_not_hide_what_is_missing() -> None:
    energy, mix = Energy.measured(3.6e6), yearly("SE")
    rate = sci_for_ai("consumer", energy, mix, Amount.missing(GRAMS, "not declared"), 100, "token").rate
    assert rate.is_missing
    assert close(rate.low, mix.low / 100)
    with pytest.raises(UsageError, match="FLOP"):
        sci_for_ai("provider", energy, mix, Amount.estimated(1, 1, 1, GRAMS), 100, "token")
    with pytest.raises(UsageError, match="above 0"):
        sci(energy, mix, Amount.estimated(1, 1, 1, GRAMS), 0, "token")


# -- over time -----------------------------------------------------------------------------------------


def steps_of(*grams: float) -> list[Step]:
    return [
        Step(NOON + i * HOUR, NOON + (i + 1) * HOUR, Factor.estimated(g, g, g, f"{GRAMS}/kWh", "grid"))
        for i, g in enumerate(grams)
    ]


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1), st.randoms())
def test_windows_that_meet_make_the_whole(grams: list[float], a: float, b: float, random: object) -> None:
    steps = steps_of(*grams)
    random.shuffle(steps)  # type: ignore[attr-defined]
    whole_s = len(grams) * 3600
    start, end = (NOON + timedelta(seconds=round(x * whole_s)) for x in sorted((a, b)))
    middle = start + (end - start) / 2
    if not start < middle < end:
        return
    whole, first, second = over(steps, start, end), over(steps, start, middle), over(steps, middle, end)
    assert math.isclose(
        whole.value * (end - start).total_seconds(),
        first.value * (middle - start).total_seconds() + second.value * (end - middle).total_seconds(),
        rel_tol=1e-9,
        abs_tol=1e-6,
    )
    assert whole.low == min(first.low, second.low)
    assert whole.high == max(first.high, second.high)


def test_a_window_must_be_covered_exactly_once() -> None:
    steps = steps_of(100, 200, 300)
    assert over(steps, NOON + HOUR, NOON + HOUR).value == 200
    with pytest.raises(NegawattError, match="reaches from"):
        over(steps, NOON, NOON + 4 * HOUR)
    with pytest.raises(NegawattError, match=r"13:00 UTC and 2026-03-01 14:00"):
        over([steps[0], steps[2]], NOON, NOON + 3 * HOUR)
    with pytest.raises(NegawattError, match="two rates"):
        over([*steps, steps[1]], NOON, NOON + 3 * HOUR)
    with pytest.raises(NegawattError, match="nothing is known"):
        over([], NOON, NOON + HOUR)
    with pytest.raises(UsageError, match="before it starts"):
        over(steps, NOON + HOUR, NOON)


NIGHT = Tariff(
    0.30,
    "EUR",
    (Band(-0.05, time(13), time(15), WORKDAYS), Band(0.18, time(22), time(6))),
    "Europe/Berlin",
)


@given(
    st.sampled_from([datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC), NOON]),
    st.integers(0, 48 * 60),
    st.integers(1, 36 * 60),
)
def test_tariff_steps_agree_with_the_clock(day: datetime, after_min: int, length_min: int) -> None:
    """Also on the two nights on which the clocks change, when local hours are skipped or come twice."""
    start = day + timedelta(minutes=after_min)
    end = start + timedelta(minutes=length_min)
    for step in NIGHT.steps(start, end):
        for fraction in (0, 0.5, 0.999):
            local = (step.start + (step.end - step.start) * fraction).astimezone(ZoneInfo("Europe/Berlin"))
            held = next((band.price for band in NIGHT.bands if band.holds(local)), NIGHT.price)
            assert step.rate.value == held, local
    mean = over(NIGHT.steps(start, end), start, end)
    assert -0.05 <= mean.low <= mean.value <= mean.high <= 0.30


def test_cost_by_time_of_use() -> None:
    kwh = Energy.measured(3.6e6)
    assert close(cost(kwh, Tariff(0.30, "EUR")).value, 0.30)
    start = datetime(2026, 3, 1, 21, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    spent = cost(kwh, NIGHT, start, start + 4 * HOUR)
    assert close(spent.value, (0.30 + 3 * 0.18) / 4)
    assert close(spent.low, 0.18)
    assert close(spent.high, 0.30)
    assert spent.unit == "EUR"
    with pytest.raises(UsageError, match="from when to when"):
        cost(kwh, NIGHT)
    with pytest.raises(UsageError, match="Europe/Berlin"):
        cost(kwh, Tariff(0.3, "EUR", NIGHT.bands, "Mars/Olympus"), start, start + HOUR)


# -- sources that need no network ----------------------------------------------------------------------


def test_the_table_names_source_and_year() -> None:
    assert len(countries()) > 200
    assert len({c.alpha_3 for c in countries()}) == len({c.alpha_2 for c in countries()}) == len(countries())
    assert all(0 < c.g_per_kwh < 1500 and 2021 <= c.year <= 2026 for c in countries())
    germany = yearly("DE")
    assert germany == yearly("deu") == yearly(" Germany ")
    assert "2023" in germany.source
    assert "Our World in Data" in germany.source
    assert yearly("NO").high < germany.low < germany.high  # water against coal, beyond the tables' doubts
    with pytest.raises(UsageError, match=r"South Korea \(KR\)"):
        yearly("korea")


def test_csv_by_the_hour(tmp_path: Path) -> None:
    file = tmp_path / "grid.csv"
    file.write_text(
        "start,g_per_kwh,low,high\n"
        "2026-03-01T13:00+01:00,100,90,110\n"
        "2026-03-01T13:00Z,200,,\n"
        "2026-03-01T14:00Z,300,250,\n"
    )
    rate = over(CsvIntensity(file).steps(NOON, NOON + 3 * HOUR), NOON, NOON + 3 * HOUR)
    assert (rate.value, rate.low, rate.high) == (200, 90, 300)
    assert "grid.csv" in rate.source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line naming"),
        ("start,grams\n", "g_per_kwh is not there"),
        ("start,g_per_kwh\n2026-03-01T12:00Z,100\n", "needs an end"),
        ("start,g_per_kwh\n2026-03-01T12:00,100\n2026-03-01T13:00Z,1\n", "line 2.*no time zone"),
        ("start,g_per_kwh\nnoon,100\n2026-03-01T13:00Z,1\n", "line 2.*expected a time"),
        ("start,g_per_kwh\n2026-03-01T13:00Z,1\n2026-03-01T12:00Z,1\n", "line 3.*later"),
        ("start,g_per_kwh\n2026-03-01T12:00Z,nan\n2026-03-01T13:00Z,1\n", "line 2.*finite"),
        ("start,g_per_kwh\n2026-03-01T12:00Z,much\n2026-03-01T13:00Z,1\n", "line 2.*much"),
        ("start,end,g_per_kwh\n2026-03-01T12:00Z,2026-03-01T11:00Z,1\n", "line 2.*ends after"),
    ],
)
def test_a_csv_that_breaks_the_format_gets_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "grid.csv"
    file.write_text(text)
    with pytest.raises(NegawattError, match=says):
        CsvIntensity(file).steps(NOON, NOON + HOUR)


# -- the ledger ----------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from(BOUNDARIES), energies()),
    st.dictionaries(st.sampled_from(BOUNDARIES), factors("1", 1, 3)),
)
def test_the_steps_of_a_ledger_add_up(measured: dict, rates: dict) -> None:  # type: ignore[type-arg]
    book = ledger(measured, rates)
    assert tuple(b for line in book.lines for b in line.covers) == BOUNDARIES  # each boundary once
    known = [line for line in book.lines if not line.total.is_missing]
    assert (book.boundary is None) == (not known) == (not measured)
    if not known:
        assert book.total.is_missing
        return
    total, summed = book.total, Energy.total(line.added for line in known)
    most = max(abs(line.total.value_j or 0) for line in known)
    assert math.isclose(summed.value_j, total.value_j, rel_tol=1e-9, abs_tol=1e-9 * most)  # type: ignore[arg-type]
    assert total.value_j == book.at(book.boundary).value_j  # type: ignore[arg-type]
    assert book.lines[: len(known)] == tuple(known)  # what is missing is outside, never in between
    for boundary, energy in measured.items():
        assert book.at(boundary) == energy  # a meter's figure is reported as it is


@given(energies(0), factors("1", 1, 3))
def test_a_factor_scales_the_interval_once(inside: Energy, rate: Factor) -> None:
    book = ledger({"wall": inside}, {"facility": rate})
    assert close(book.total.low_j, inside.low_j * rate.low)  # type: ignore[operator]
    assert close(book.total.high_j, inside.high_j * rate.high)  # type: ignore[operator]


def test_a_ledger_says_what_it_does_not_know() -> None:
    book = ledger({"chip": Energy.measured(10), "facility": Energy.missing("no key to the cage")})
    assert book.boundary == "chip"
    assert "no key to the cage" in str(book)
    assert book.lines[-1].total.low_j == 10
    assert book.at("facility").is_missing
    skipped = ledger({"chip": Energy.measured(10)}, {"facility": given_pue(1.5)})
    assert skipped.boundary == "chip"
    assert "not applied" in skipped.warnings[0]
    crossed = ledger({"chip": Energy.measured(10), "wall": Energy.measured(8)})
    assert "disagree" in crossed.warnings[0]
    assert crossed.lines[1].added.value_j == -2  # not clamped
    with pytest.raises(UsageError, match="expected one of"):
        ledger({"rack": Energy.zero()})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="pure number"):
        ledger({"wall": Energy.measured(8)}, {"facility": yearly("DE")})
