"""Synthetic machines whose true power curve is known, to hold intervals against.

Each draws power at rest and more with load along a random shape, differently for different kinds of
work; its meter is noisy and drifts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from negawatt.meter.curve import LoadStep, PowerCurve
from negawatt.meter.machine import fingerprint

SHAPES: dict[str, Callable[[float, float, float], float]] = {  # share of dynamic power at load u
    "line": lambda u, a, b: u,
    "concave": lambda u, a, b: u ** (0.4 + 0.6 * a),
    "convex": lambda u, a, b: u ** (1 + 0.5 * a),
    # beyond the knee a hardware thread shares its core
    "knee": lambda u, a, b: (min(u, 0.5) + a * max(0.0, u - 0.5)) / (0.5 + 0.5 * a),
    # the first busy core wakes the package
    "wake": lambda u, a, b: 0.3 * a * min(1.0, u / (0.005 + 0.1 * b)) + (1 - 0.3 * a) * u,
}


@dataclass
class SyntheticMachine:
    """A machine with a true power curve, and a meter on it.

    Attributes:
        dice: decides all that is random.
        threads: hardware threads.
    """

    dice: random.Random
    threads: int = 16

    def __post_init__(self) -> None:
        dice = self.dice
        self.idle_w, self.dynamic_w = dice.uniform(5, 200), dice.uniform(10, 400)
        self.shape, self.a, self.b = dice.choice(sorted(SHAPES)), dice.random(), dice.random()
        self.spread, self.noise = dice.uniform(0.02, 0.2), dice.uniform(0.002, 0.03)
        self.drift = dice.uniform(-0.02, 0.02)
        self.effects: dict[str, float] = {"rest": 0.0}

    def power_w(self, work: str, load: float, when: float) -> float:
        """Watts of a machine at a load, `when` sessions of calibration after its start."""
        effect = self.effects.setdefault(work, self.dice.gauss(0, self.spread))
        watts = self.idle_w + self.dynamic_w * SHAPES[self.shape](load, self.a, self.b) * (1 + effect)
        return watts * (1 + self.drift * when) * (1 + self.dice.gauss(0, self.noise))

    def calibrated(self, plan: Sequence[tuple[str, float]]) -> PowerCurve:
        """The curve that load steps (work, level) find, each with a load a little off what was asked for."""
        steps = []
        for n, (work, level) in enumerate(plan):
            load = min(1.0, max(0.0, level + self.dice.gauss(0, 0.01)))
            steps.append(LoadStep(work, level, load, self.power_w(work, load, n / len(plan))))
        return PowerCurve(
            fingerprint(),
            self.threads,
            "2026-01-01T00:00:00+0000",
            ("wall/desk",),
            "wall",
            ("cpu", "dram", "disk"),
            tuple(steps),
        )
