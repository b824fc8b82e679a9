"""The CPU-time model: published curves, the band over them, and what it is told about processors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Provenance
from negawatt.errors import UsageError
from negawatt.meter import energy_of_cpu_time
from negawatt.meter.cputime import boavizta, cloud, cpu_power, teads, this_cpu_power
from negawatt.meter.tdp import thread_power

NAMES = st.sampled_from(
    [
        "Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz",
        "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz",
        "Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz",
        "AMD EPYC 7763 64-Core Processor",
        "AMD Ryzen 9 5950X 16-Core Processor",
        "Intel(R) Core(TM) i7-1165G7 @ 2.80GHz",
        "something new",
        "",
    ]
)


@pytest.mark.parametrize(("load", "share"), [(0, 0.12), (0.1, 0.32), (0.3, 0.535), (0.5, 0.75), (1, 1.02)])
def test_teads_is_linear_between_its_points(load: float, share: float) -> None:
    assert teads(200, load) == pytest.approx(200 * share)


@pytest.mark.parametrize(
    ("family", "load", "watts"),
    [  # a·ln(b·(u + c)) + d by hand
        ("Platinum", 1.0, 260.05),
        ("Platinum", 0.0, 35.58),
        ("Gold", 1.0, 116.26),
        ("Silver", 0.5, 60.66),
    ],
)
def test_boavizta_follows_its_formula(family: str, load: float, watts: float) -> None:
    assert boavizta(family, load) == pytest.approx(watts, abs=0.05)


def test_cloud_carbon_footprint_goes_from_idle_to_full() -> None:
    assert cloud("AWS", 0) == 0.74
    assert cloud("AWS", 1) == 3.5
    assert cloud("AWS", 0.5) == pytest.approx(2.12)


@given(NAMES)
def test_the_band_holds_its_value_and_idle_is_the_smaller_part(name: str) -> None:
    power = cpu_power(name)
    assert 0 < power.low_w < power.value_w < power.high_w
    assert 0 < power.idle_low_w <= power.idle_w <= power.idle_high_w
    assert power.idle_w < power.value_w
    assert "Teads" in power.models


@given(NAMES, st.floats(0, 1e6))
def test_energy_is_proportional_to_cpu_time(name: str, cpu_s: float) -> None:
    power = cpu_power(name)
    one, many = power.energy(1.0), power.energy(cpu_s)
    assert many.provenance is Provenance.ESTIMATED
    assert many.value_j == pytest.approx(one.value_j * cpu_s)
    assert all(model in many.reason for model in power.models)


def test_a_known_part_has_a_narrower_band_than_its_generation_and_that_than_none() -> None:
    def width(*cpu: object) -> float:
        power = cpu_power(*cpu)  # type: ignore[arg-type]
        return power.high_w / power.low_w

    part = width("AMD EPYC 9654 96-Core Processor", "AuthenticAMD", 25, 17)
    generation = width("AMD EPYC", "AuthenticAMD", 25, 17)
    assert part < generation < width("a processor")


def test_a_xeon_is_held_against_its_own_family_only_and_a_desktop_against_no_cloud() -> None:
    assert cpu_power("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz").models == (
        "Teads",
        "Boavizta Gold",
        "Cloud Carbon Footprint AWS",
        "Cloud Carbon Footprint GCP",
        "Cloud Carbon Footprint Azure",
    )
    assert not any("Cloud" in m for m in cpu_power("AMD Ryzen 9 5950X 16-Core Processor").models)


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 120 / 28),
        ("Intel(R) Xeon(R) Platinum 8480+", 350 / 112),
        ("AMD EPYC 7763 64-Core Processor", 280 / 128),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", 28 / 8),
    ],
)
def test_parts_are_known_by_the_names_that_kernels_print(name: str, watts: float) -> None:
    assert thread_power(name).usual_w == pytest.approx(watts)


def test_a_part_is_not_taken_for_one_whose_name_it_contains() -> None:
    assert thread_power("AMD EPYC 77020 imaginary").part_threads is None


def test_the_public_conversion_is_this_machines() -> None:
    assert energy_of_cpu_time(2.0) == this_cpu_power().energy(2.0)


@pytest.mark.parametrize("cpu_s", [-1.0, float("nan"), float("inf")])
def test_impossible_cpu_time_is_refused(cpu_s: float) -> None:
    with pytest.raises(UsageError, match="from 0 up"):
        energy_of_cpu_time(cpu_s)
