"""The meter against a synthetic machine whose true energy is known, through a thousand kinds of trouble.

The machine draws power along a random curve; its counter wraps, refreshes late, freezes, is reset,
answers nonsense or nothing; the machine is suspended, and the counter runs on, or is lost, meanwhile.
What the meter says over a random window is held against the integral of the curve. Time is the
machine's own monotonic clock, which stands still in suspend and knows no steps (what the wall clock
does is tried in test_faults.py), so that a scenario of a minute takes milliseconds.
"""

import random
import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from negawatt import Energy, Provenance
from negawatt.errors import SensorError
from negawatt.meter import Counter, Integrated, Power, PowerSource, Reading, Sensor
from negawatt.meter.accumulate import Accumulator, Total, window
from negawatt.meter.rapl import RaplSensor
from negawatt.testing.powercap import PowercapTree

LENGTH_S = 60.0


class Curve:
    """Power that stays constant for a while and then jumps: ``watts[i]`` from ``starts[i]`` on."""

    def __init__(self, dice: random.Random) -> None:
        self.starts, self.watts, self.joules = [0.0], [dice.uniform(5, 300)], [0.0]
        while self.starts[-1] < LENGTH_S:
            lasting_s = dice.expovariate(1.0) + 0.02
            self.joules.append(self.joules[-1] + lasting_s * self.watts[-1])
            self.starts.append(self.starts[-1] + lasting_s)
            self.watts.append(dice.uniform(5, 300))

    def until(self, at_s: float) -> float:
        """Joules from the beginning to a moment."""
        i = bisect_right(self.starts, at_s) - 1
        return self.joules[i] + (at_s - self.starts[i]) * self.watts[i]


@dataclass
class Machine(Sensor):
    """A counter over a curve, with faults; it is read at the time that `now_s` says."""

    curve: Curve
    dice: random.Random
    range_j: float
    refresh_s: float
    fail: float
    torn: float
    resets: list[float]
    frozen: tuple[float, float, bool] | None = None  # from, to, and whether what flowed is lost
    suspended: tuple[float, float] | None = None  # when, and the joules that the counter saw meanwhile
    name: str = "synthetic"
    now_s: float = 0.0
    origin_j: float = field(default=0.0)

    def read(self) -> Reading:
        if self.dice.random() < self.fail:
            raise SensorError("the read failed")
        shown_s = self.now_s - self.now_s % self.refresh_s
        since = max((r for r in self.resets if r <= shown_s), default=None)
        joules = self._counted(shown_s)
        raw = (self.origin_j + joules) if since is None else joules - self._counted(since)
        raw %= self.range_j
        if self.dice.random() < self.torn:
            raw = float(int(str(int(raw))[: self.dice.randint(1, 3)]))  # the front of the number only
        counter = Counter(
            raw, range_j=self.range_j, resolution_j=6e-5, refresh_s=self.refresh_s, limit_w=400.0
        )
        return Reading(self.now_s, {"cpu/0": counter})

    def _counted(self, at_s: float) -> float:
        """What the counter has seen by a moment, resets aside."""
        joules = self.curve.until(at_s)
        if self.frozen and at_s > self.frozen[0]:
            start_s, stop_s, lost = self.frozen
            if at_s < stop_s or lost:
                joules -= self.curve.until(min(at_s, stop_s)) - self.curve.until(start_s)
        if self.suspended and at_s >= self.suspended[0]:
            joules += self.suspended[1]
        return joules

    @property
    def honest(self) -> bool:
        """Whether the counter saw every joule once and told it in time."""
        return not (self.frozen or self.suspended or self.resets)


def trouble(dice: random.Random) -> dict[str, Any]:
    """None in most scenarios; else one of a reset, a freeze, or a night's sleep."""
    at_s, kind = dice.uniform(1, LENGTH_S), dice.random()
    if kind < 0.2:
        return {"resets": [at_s]}
    if kind < 0.3:
        return {"resets": [], "frozen": (at_s, at_s + dice.uniform(2, 20), dice.random() < 0.5)}
    if kind < 0.35:
        return {"resets": [], "suspended": (at_s, dice.uniform(0.5, 5) * dice.uniform(10, 30_000))}
    if kind < 0.4:
        return {"resets": [at_s], "suspended": (at_s, 0.0)}
    return {"resets": []}


def polls(dice: random.Random, stop_s: float) -> list[float]:
    """When the counter is read besides: ten times a second, now and then, or hardly ever."""
    period_s = dice.choice([0.1, 0.1, 0.1, 1.0, 20.0])
    every = [n * period_s + dice.uniform(0, period_s / 2) for n in range(int(stop_s / period_s))]
    return [p for p in every if p < stop_s]


def scenario(seed: int) -> tuple[Energy, float, float, Machine]:
    """The meter's figure over a random window, the truth, the window's length and the machine."""
    dice = random.Random(seed)
    range_j = dice.choice([262_143.0, 65_536.0, 5_000.0])
    machine = Machine(
        curve=Curve(dice),
        dice=dice,
        range_j=range_j,
        refresh_s=dice.choice([0.001, 0.01, 0.1, 1.0]),
        fail=dice.choice([0.0, 0.0, 0.05, 0.3]),
        torn=dice.choice([0.0, 0.0, 0.01]),
        **trouble(dice),
        origin_j=dice.uniform(0, range_j),
    )
    start_s = dice.uniform(0.5, 40)
    stop_s = start_s + dice.choice([dice.uniform(0.02, 0.5), dice.uniform(0.5, 20)])
    accumulator = Accumulator(machine)
    ends: dict[float, Total] = {}
    for at_s in sorted([*polls(dice, stop_s), start_s, stop_s]):
        machine.now_s = at_s
        totals = accumulator.update()
        if totals and at_s in (start_s, stop_s):
            ends[at_s] = totals["cpu/0"]
    truth_j = machine.curve.until(stop_s) - machine.curve.until(start_s)
    if start_s not in ends:
        return Energy.missing("the sensor never answered"), truth_j, stop_s - start_s, machine
    return window(ends[start_s], ends[stop_s], start_s, stop_s), truth_j, stop_s - start_s, machine


SCENARIOS = [scenario(seed) for seed in range(1000)]


def test_the_truth_is_inside_the_interval_nine_times_in_ten() -> None:
    told = [(energy, truth_j) for energy, truth_j, *_ in SCENARIOS if not energy.is_missing]
    held = sum(energy.low_j <= truth_j <= energy.high_j for energy, truth_j in told)
    assert held / len(told) >= 0.9
    assert len(told) >= 800


def test_what_is_measured_is_within_two_percent() -> None:
    """Over windows that hold many refreshes; shorter ones say so in their interval."""
    figures = [
        (abs(energy.value_j - truth_j) / truth_j, machine.honest)
        for energy, truth_j, length_s, machine in SCENARIOS
        if energy.provenance is Provenance.MEASURED and length_s > 100 * machine.refresh_s
    ]
    measured = [error for error, _ in figures]
    assert len(measured) >= 300
    # Only a counter that lost joules between two distant readings can be further off unseen.
    assert max(error for error, honest in figures if honest) <= 0.02
    assert sum(error <= 0.02 for error in measured) / len(measured) >= 0.99
    assert sorted(measured)[len(measured) // 2] < 0.002


def test_no_joule_is_negative_or_silently_missing() -> None:
    for energy, *_ in SCENARIOS:
        if energy.is_missing:
            assert energy.reason
        else:
            assert energy.value_j >= 0
            assert energy.low_j >= 0


def test_the_intervals_are_not_so_wide_that_they_say_nothing() -> None:
    widths = [
        (energy.high_j - energy.low_j) / truth_j
        for energy, truth_j, length_s, machine in SCENARIOS
        if energy.provenance is Provenance.MEASURED and length_s > 100 * machine.refresh_s
    ]
    assert sorted(widths)[len(widths) // 2] < 0.05


@pytest.mark.parametrize("seed", range(20))
def test_the_same_through_real_files(tmp_path: Path, seed: int) -> None:
    """A powercap tree on disk, near its wrap, spent along a curve: to the microjoule of the files."""
    dice = random.Random(seed)
    tree = PowercapTree(tmp_path)
    tree.add("intel-rapl:0", "package-0", tree.range_uj - dice.randint(0, 500_000_000))
    accumulator = Accumulator(RaplSensor(tree.root))
    before = accumulator.update()["cpu/0"]
    spent_j = 0.0
    for _ in range(30):
        step_j = dice.uniform(0, 1.9)
        tree.spend(step_j)
        spent_j += step_j
        after = accumulator.update()["cpu/0"]
    assert after.value_j - before.value_j == pytest.approx(spent_j, abs=30e-6)


@dataclass
class Plug(PowerSource):
    """Tells the power of a curve, as it was at its last refresh, or nothing."""

    curve: Curve
    dice: random.Random
    refresh_s: float
    fail: float
    now_s: float = 0.0
    name: str = "plug"

    def read_power(self) -> dict[str, Power]:
        if self.dice.random() < self.fail:
            raise SensorError("the plug does not answer")
        shown_s = self.now_s - self.now_s % self.refresh_s
        watts = self.curve.watts[bisect_right(self.curve.starts, shown_s) - 1]
        return {"wall/x": Power(watts, 0.0, self.refresh_s, "wall")}


def test_sampled_power_holds_the_truth_nine_times_in_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power that jumps once a second on average, sampled twice as often or more."""
    held, told, errors = 0, 0, []
    for seed in range(300):
        dice = random.Random(seed)
        plug = Plug(Curve(dice), dice, dice.choice([0.01, 0.1]), dice.choice([0.0, 0.0, 0.1]))
        clock = SimpleNamespace(monotonic=lambda plug=plug: plug.now_s)
        monkeypatch.setattr(sys.modules[Integrated.__module__], "time", clock)
        accumulator = Accumulator(Integrated(plug))
        start_s = dice.uniform(1, 20)
        stop_s, period_s = start_s + dice.uniform(2, 30), dice.choice([0.1, 0.5])
        ends = {}
        for at_s in sorted([*(n * period_s for n in range(int(stop_s / period_s))), start_s, stop_s]):
            plug.now_s = at_s
            totals = accumulator.update()
            if at_s in (start_s, stop_s):
                ends[at_s] = totals["wall/x"]
        energy = window(ends[start_s], ends[stop_s], start_s, stop_s)
        truth_j = plug.curve.until(stop_s) - plug.curve.until(start_s)
        told += 1
        held += energy.low_j <= truth_j <= energy.high_j
        errors.append(abs(energy.value_j / truth_j - 1))
        assert energy.provenance is Provenance.DERIVED
    assert held / told >= 0.9
    assert sorted(errors)[told // 2] < 0.05
