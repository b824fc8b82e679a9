"""Energy per unit of work in a loop of one's own: counted, divided, and missing where it is missing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Energy, NegawattError
from negawatt.integrations.training import UNITS, Spent, TrainingMeter, batch_size, trained_parameters
from negawatt.meter import Station


class Kept:
    """A log that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], dict[str, str], int]] = []

    def __call__(self, figures: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        self.rows.append((dict(figures), dict(words), step))


def spin(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def test_a_real_loop_in_pytorch(station: Station) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = Kept()
    parameters = trained_parameters(model)
    with TrainingMeter(logs=[kept], every=2, parameters=parameters, station=station) as meter:
        for _ in range(2):
            for number in range(4):
                model(torch.rand(16, 8)).sum().backward()
                updated = number % 2 == 1  # gradients of two batches are gathered
                if updated:
                    optimizer.step()
                    optimizer.zero_grad()
                spin(0.005)
                meter.step(samples=16, tokens=16 * 8, updated=updated)
            meter.epoch()
    spent = meter.spent
    assert spent.counts == {
        "sample": 128,
        "token": 1024,
        "step": 8,
        "update": 4,
        "parameter_update": 4 * 18,
        "epoch": 2,
    }
    whole_j = spent.energy.value_j
    assert whole_j > 0
    for unit in UNITS:
        per = spent.per(unit)
        assert per.value_j * spent.counts[unit] == pytest.approx(whole_j)
        assert per.low_j < per.value_j < per.high_j
    assert [step for _, _, step in kept.rows] == [2, 4, 4, 6, 8, 8, 8]
    grown = [figures["negawatt/energy_j"] for figures, _, _ in kept.rows]
    assert grown == sorted(grown)
    figures, words, _ = kept.rows[-1]
    assert figures["negawatt/energy_per_sample_j"] == pytest.approx(whole_j / 128)
    assert figures["negawatt/energy_low_j"] < figures["negawatt/energy_j"] < figures["negawatt/energy_high_j"]
    assert words["negawatt/provenance"] == "estimated"
    assert "Teads" in words["negawatt/reason"]


def test_missing_energy_is_logged_as_missing() -> None:
    spent = Spent(Energy.missing("permission denied"), 1.0, 2.0, {"step": 3})
    figures = spent.figures()
    assert math.isnan(figures["negawatt/energy_j"])
    assert math.isnan(figures["negawatt/energy_per_step_high_j"])
    assert figures["negawatt/cpu_s"] == 1.0
    assert spent.words() == {"negawatt/provenance": "missing", "negawatt/reason": "permission denied"}


def test_a_part_that_is_known_of_what_is_missing_is_no_lower_end_of_it() -> None:
    incomplete = Energy.measured(5.0) + Energy.missing("the GPU's counter is denied")
    assert math.isnan(Spent(incomplete, 1.0, 1.0).figures()["negawatt/energy_low_j"])


def test_what_was_not_counted_is_missing_not_zero_or_infinite() -> None:
    spent = Spent(Energy.measured(5.0), 1.0, 2.0, {"step": 2})
    assert spent.per("token").is_missing
    assert "energy_per_token" not in " ".join(spent.figures())
    with pytest.raises(NegawattError, match="expected one of sample"):
        spent.per("joule")


@given(st.floats(1e-9, 1e12), st.integers(1, 10**12))
def test_shares_make_the_whole(whole_j: float, count: int) -> None:
    spent = Spent(Energy.measured(whole_j, whole_j / 10), 1.0, 1.0, {"token": count})
    per = spent.per("token")
    assert per.value_j * count == pytest.approx(whole_j, rel=1e-9)
    assert per.low_j * count == pytest.approx(0.9 * whole_j, rel=1e-9)


def test_the_meter_can_be_used_again_and_is_not_readable_before(station: Station) -> None:
    meter = TrainingMeter(station=station)
    with pytest.raises(NegawattError, match="not running"):
        _ = meter.spent
    for _ in range(2):
        with meter:
            meter.step(samples=1)
        assert meter.spent.counts["step"] == 1


def test_the_size_of_a_batch_is_found_in_whatever_loaders_make() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(7, 3)
    assert [batch_size(b) for b in (x, [x, x], (x, 1), {"a": {"b": x}}, {"n": 1, "x": x})] == [7] * 5
    assert batch_size("words") == batch_size([]) == batch_size(torch.tensor(1.0)) == 0
