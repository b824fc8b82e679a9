"""The cost model recovers a known machine, never goes negative, and tells its error honestly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.energy import Energy
from negawatt.engine import Step
from negawatt.errors import NegawattError
from negawatt.profiling import Cost, CostModel

PER_CPU_S = Energy.estimated(4.0, 2.0, 10.0, "a known machine")
coefficient = st.floats(1e-6, 1e-1)


def machine_steps(
    rng: np.random.Generator, p: tuple[float, ...], d: tuple[float, ...], noise: float, batch: int = 1
) -> list[Step]:
    """Steps of requests on a machine that follows the formula, disturbed by log-normal noise."""
    steps = []
    for _ in range(24):
        n_in, n_out = int(rng.integers(10, 400)), int(rng.integers(20, 90))
        tokens = n_in * batch
        cost = p[0] + p[1] * tokens + p[2] * tokens**2 / (2 * batch)
        steps.append(Step("prefill", batch, tokens, 0, batch, cost, cost * np.exp(noise * rng.normal())))
        for k in range(1, n_out):
            live = max(1, batch - k * batch // n_out)
            context = live * (n_in + k)
            cost = d[0] + d[1] * live + d[2] * context
            steps.append(Step("decode", live, live, context, live, cost, cost * np.exp(noise * rng.normal())))
    return steps


def fitted(steps: list[Step], batch: int = 1) -> CostModel:
    return CostModel.fit(steps, batch=batch, cpu_s=sum(s.cpu_s for s in steps), energy_per_cpu_s=PER_CPU_S)


@pytest.mark.parametrize("batch", [1, 8])
def test_predicts_requests_of_other_lengths_on_a_known_machine(batch: int) -> None:
    p, d = (2e-3, 1e-3, 2e-6), (8e-3, 1e-3, 3e-6)
    model = fitted(machine_steps(np.random.default_rng(1), p, d, 0.05, batch), batch)
    for n_in, n_out in [(5, 300), (700, 8), (250, 250)]:
        prefill = p[0] / batch + p[1] * n_in + p[2] * n_in**2 / 2
        decode = sum(d[0] / batch + d[1] + d[2] * (n_in + k) for k in range(1, n_out))
        assert model.request_cpu_s(n_in, n_out) == pytest.approx(prefill + decode, rel=0.05)


def test_a_disturbed_tenth_of_the_steps_hardly_moves_the_fit() -> None:
    rng = np.random.default_rng(2)
    steps = machine_steps(rng, (2e-3, 1e-3, 0.0), (8e-3, 0.0, 3e-6), 0.02)
    clean = fitted(steps).request_cpu_s(100, 100)
    disturbed = [
        replace(s, cpu_s=s.cpu_s * 6)
        if rng.random() < 0.1 else s
        for s in steps
    ]  # fmt: skip
    model = CostModel.fit(
        disturbed, batch=1, cpu_s=sum(s.cpu_s for s in disturbed), energy_per_cpu_s=PER_CPU_S
    )
    assert model.request_cpu_s(100, 100) == pytest.approx(clean, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[coefficient] * 3), st.tuples(*[coefficient] * 3), st.integers(0, 9))
def test_coefficients_are_never_negative_and_costs_grow_with_length(
    p: tuple[float, ...], d: tuple[float, ...], seed: int
) -> None:
    model = fitted(machine_steps(np.random.default_rng(seed), p, d, 0.3)[:200])
    values = model.to_json()["coefficients"].values()
    assert min(values) >= 0
    assert model.request_cpu_s(50, 60) <= model.request_cpu_s(60, 60) <= model.request_cpu_s(60, 80)


def test_errors_are_those_of_requests_held_back() -> None:
    model = fitted(machine_steps(np.random.default_rng(3), (0.0, 1e-3, 0.0), (1e-2, 0.0, 0.0), 0.0))
    right = model.group_cpu_s((100,), (50,))
    tested = model.tested_on([Cost((100,), (50,), right), Cost((100,), (50,), right / 1.5)])
    assert tested.errors == pytest.approx((0.0, 0.5))
    assert tested.median_error == pytest.approx(0.25)
    assert model.median_error is None


def test_speculation_is_in_the_formula() -> None:
    """An engine call that yields two tokens costs half as much a token."""
    steps = [Step("prefill", 1, 10, 0, 1, 0.01, 0.01)]
    steps += [Step("decode", 1, 4, 10 + 2 * k, 2, 0.01, 0.01) for k in range(20)]
    assert fitted(steps).request_cpu_s(10, 41) == pytest.approx(0.01 + 20 * 0.01, rel=0.02)


def test_energy_carries_the_band() -> None:
    model = fitted(machine_steps(np.random.default_rng(4), (0.0, 1e-3, 0.0), (1e-2, 0.0, 0.0), 0.0))
    energy = model.request_energy(10, 10)
    assert energy.value_j == pytest.approx(4.0 * model.request_cpu_s(10, 10))
    assert energy.high_j == pytest.approx(10.0 * model.request_cpu_s(10, 10))


def test_needs_both_phases() -> None:
    with pytest.raises(NegawattError, match="at least one prefill"):
        fitted([Step("decode", 1, 1, 5, 1, 0.01, 0.01)])
