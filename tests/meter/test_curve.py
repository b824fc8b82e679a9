"""The power curve on synthetic machines whose true curve is known: is the truth inside the intervals?

Each is calibrated by load steps as the command would do it, and then asked about loads and kinds of
work that the calibration never saw.
"""

import json
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import NegawattError
from negawatt.meter.calibrate import steps_plan
from negawatt.meter.calibrated import curve_power
from negawatt.meter.curve import LoadStep, PowerCurve
from negawatt.meter.machine import fingerprint
from negawatt.testing.synthetic import SyntheticMachine


def machines(count: int) -> list[tuple[SyntheticMachine, PowerCurve]]:
    made = [SyntheticMachine(random.Random(seed)) for seed in range(count)]
    return [(machine, machine.calibrated(steps_plan())) for machine in made]


MACHINES = machines(600)


def held_back(machine: SyntheticMachine) -> list[tuple[float, float]]:
    """Loads and watts of work that the calibration never saw, up to a session after it."""
    return [
        (load, machine.power_w(f"new {n}", load, machine.dice.uniform(1, 2)))
        for n, load in enumerate(machine.dice.random() for _ in range(10))
    ]


def test_nine_in_ten_intervals_hold_the_truth_on_held_back_data() -> None:
    held: dict[str, list[bool]] = {}
    for machine, curve in MACHINES:
        for load, watts in held_back(machine):
            inside = abs(watts - curve.power_w(load)) <= curve.margin_w(load)
            held.setdefault(machine.shape, []).append(inside)
    everything = [inside for shape in held.values() for inside in shape]
    assert len(everything) == 6000
    assert sum(everything) / len(everything) >= 0.9
    assert all(sum(shape) / len(shape) >= 0.88 for shape in held.values())


def test_nine_in_ten_charges_hold_the_truth_too() -> None:
    """Joules of the only busy process: its idle share and all dynamic power, at a load that is known."""
    held = []
    for machine, curve in MACHINES:
        power = curve_power(curve)
        for load, watts in held_back(machine):
            cpu_s = load * machine.threads * 10.0
            idle_w = machine.idle_w * (1 + machine.drift)
            truth_j = (load * idle_w + watts - idle_w) * 10.0
            charged = power.energy(cpu_s, load)
            held.append(charged.low_j <= truth_j <= charged.high_j)
    assert sum(held) / len(held) >= 0.9


def test_the_intervals_are_narrow_enough_to_be_of_use() -> None:
    widths = sorted(curve.margin_w(0.5) / curve.power_w(0.5) for _, curve in MACHINES)
    assert widths[len(widths) // 2] < 0.2
    ratios = [curve_power(c).energy(1.0, 0.5) for _, c in MACHINES]
    assert sorted(e.high_j / e.low_j if e.low_j else math.inf for e in ratios)[len(ratios) // 2] < 2


def test_the_curve_never_falls() -> None:
    for _, curve in MACHINES[:100]:
        watts = [curve.power_w(n / 100) for n in range(101)]
        assert watts == sorted(watts)


@given(st.integers(0, 99), st.floats(0.001, 1), st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_what_is_charged_and_idle_make_the_machine(which: int, load: float, weights: list[float]) -> None:
    """All processes' charges and the idle power of the time nobody was busy add up to P(u)·t."""
    _, curve = MACHINES[which]
    power, seconds = curve_power(curve), 7.0
    busy_s = load * curve.threads * seconds
    parts = [power.energy(busy_s * w / math.fsum(weights), load).value_j for w in weights]
    rest_j = curve.power_w(0) * seconds * (1 - load)
    assert math.fsum(parts) + rest_j == pytest.approx(curve.power_w(load) * seconds, rel=1e-9)


@given(st.integers(0, 99), st.floats(0, 1e6), st.one_of(st.none(), st.floats(0, 1)))
def test_charges_are_proportional_to_cpu_time(which: int, cpu_s: float, load: float | None) -> None:
    power = curve_power(MACHINES[which][1])
    one, many = power.energy(1.0, load), power.energy(cpu_s, load)
    assert many.value_j == pytest.approx(one.value_j * cpu_s)
    assert many.high_j == pytest.approx(one.high_j * cpu_s)
    assert power.idle(cpu_s).value_j <= many.value_j * (1 + 1e-9)
    assert many.reason == one.reason
    assert "calibrated 2026-01-01 by wall/desk" in many.reason
    assert "wall joules" in many.reason


def test_where_the_load_is_not_known_the_interval_spans_it() -> None:
    for _, curve in MACHINES[:100]:
        power = curve_power(curve)
        anywhere = power.energy(1.0)
        for load in (0.1, 0.5, 1.0):
            at = power.energy(1.0, load)
            assert anywhere.low_j <= at.value_j <= anywhere.high_j


def test_a_curve_is_kept_with_all_it_was_made_from() -> None:
    _, curve = MACHINES[0]
    document = json.loads(json.dumps(curve.to_json(), allow_nan=False))
    assert PowerCurve.from_json(document) == curve
    assert math.fsum(s["residual_w"] ** 2 for s in document["steps"]) > 0
    assert len(document["steps"]) == len(curve.steps)
    assert document["curve"][0]["power_w"] == pytest.approx(curve.power_w(0), rel=0.1)
    assert document["machine"]["id"] == fingerprint()["id"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("machine", {}),
        ("machine", {"id": "../../etc/passwd"}),
        ("machine", 3),
        ("threads", 0),
        ("threads", "many"),
        ("boundary", "moon"),
        ("steps", []),
        ("steps", [{"work": "copy", "level": 0.5, "load": math.nan, "power_w": 3.0}] * 9),
        ("steps", None),
    ],
)
def test_what_is_no_curve_is_refused(field: str, value: object) -> None:
    document = {**MACHINES[0][1].to_json(), field: value}
    with pytest.raises(ValueError, match=r"curve|invalid literal|object"):
        PowerCurve.from_json(document)


def _steps(power_w: Callable[[float], float], most: float = 1.0) -> PowerCurve:
    steps = tuple(LoadStep(w, u, u * most, power_w(u * most)) for w, u in steps_plan())
    return PowerCurve(fingerprint(), 4, "2026", ("wall/desk",), "wall", ("cpu",), steps)


def test_a_meter_that_does_not_follow_the_load_is_refused() -> None:
    dice = random.Random(0)
    with pytest.raises(NegawattError, match="wall/desk did not follow the load"):
        _steps(lambda u: 60 + dice.gauss(0, 1)).check()


def test_a_load_that_could_not_be_moved_is_refused() -> None:
    with pytest.raises(NegawattError, match="between 0% and 30%"):
        _steps(lambda u: 60 + 10 * u, most=0.3).check()
