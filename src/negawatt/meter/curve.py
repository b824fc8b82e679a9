"""`PowerCurve`: watts of a machine by its load, fitted to what a trustworthy meter said of it.

Between the load steps the curve is straight lines through the mean power of each, made monotone
by pooling neighbours that fall (Ayer et al. 1955). Whatever the load `u`, the machine draws

    P(u) ± t·√(noise² + spread²·(1 + 1/k)·(P(u) − P(0))²)      nine times in ten.

`spread` is how much the dynamic power of `k` kinds of work differs from their mean, relative to
it; `noise` is what is left, with every step between the ends held against the curve drawn without
it, so that bends between the steps are in it; `t` is Student's for k − 1 degrees of freedom.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, get_args

from negawatt.errors import NegawattError
from negawatt.meter.sensor import Boundary

_STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""Student's t that nine in ten stay within, for 1 to 9 degrees of freedom; 1.833 beyond."""

LEAST_SPAN = 0.5
"""Share of the load's whole range that the steps must cover for a curve to be drawn through them."""

Knots = Sequence[tuple[float, float]]
"""(load, watts), both ascending."""


@dataclass(frozen=True, slots=True)
class LoadStep:
    """What one load step showed.

    Attributes:
        work: kind of work; ``rest`` for none.
        level: share of the processors' time that was asked for, 0 to 1.
        load: the share that was busy, whoever kept it so.
        power_w: mean power.
    """

    work: str
    level: float
    load: float
    power_w: float


@dataclass(frozen=True)
class PowerCurve:
    """The power curve of one machine, with all it was made from.

    Attributes:
        machine: `fingerprint` of the machine.
        threads: its hardware threads.
        measured: local time, ISO 8601.
        source: components whose watts these are.
        boundary: where their joules are counted.
        covers: what they hold: ``cpu``, ``dram``, ``disk``.
        steps: what the load steps showed.
    """

    machine: Mapping[str, Any]
    threads: int
    measured: str
    source: tuple[str, ...]
    boundary: Boundary
    covers: tuple[str, ...]
    steps: tuple[LoadStep, ...]

    @cached_property
    def knots(self) -> tuple[tuple[float, float], ...]:
        """(load, watts) at every load step, both ascending."""
        return _knots(self.steps)

    def power_w(self, load: float) -> float:
        """Watts at `load` (0 to 1); beyond the last step the last line goes on."""
        return _at(self.knots, load)

    @cached_property
    def work_effects(self) -> dict[str, float]:
        """By how much each kind of work's dynamic power differs from the mean, relative to it."""
        effects = {}
        for work in sorted({s.work for s in self.steps if s.level > 0}):
            own = [(self._dynamic_w(s.load), s.power_w) for s in self.steps if s.work == work]
            over = sum(d * (watts - self.power_w(0) - d) for d, watts in own)
            effects[work] = over / (sum(d * d for d, _ in own) or 1.0)
        return effects

    @cached_property
    def residuals_w(self) -> tuple[float, ...]:
        """What is left of every step when the curve and its kind of work are taken off.

        A step between the ends is held against the curve drawn without its level.
        """
        levels = sorted({s.level for s in self.steps})
        without = {level: _knots([s for s in self.steps if s.level != level]) for level in levels[1:-1]}
        return tuple(
            s.power_w
            - _at(without.get(s.level, self.knots), s.load)
            - self.work_effects.get(s.work, 0.0) * self._dynamic_w(s.load)
            for s in self.steps
        )

    @cached_property
    def noise_w(self) -> float:
        degrees = max(1, len(self.steps) - len(self.work_effects))
        return math.sqrt(sum(r * r for r in self.residuals_w) / degrees)

    @cached_property
    def spread(self) -> float:
        effects = self.work_effects.values()
        return math.sqrt(sum(e * e for e in effects) / (len(effects) - 1))

    def margin_w(self, load: float) -> float:
        """Half-width of the interval that the machine's watts at `load` are in, nine times in ten."""
        kinds = len(self.work_effects)
        student = _STUDENT[min(kinds - 1, len(_STUDENT)) - 1]
        between_w = self.spread * self._dynamic_w(load)
        return student * math.sqrt(self.noise_w**2 + (1 + 1 / kinds) * between_w**2)

    def _dynamic_w(self, load: float) -> float:
        return self.power_w(load) - self.power_w(0)

    def check(self) -> None:
        """Refuse steps that no curve can be drawn through.

        Raises:
            NegawattError: the load could not be moved far enough, or power did not follow it.
        """
        (least, idle_w), (most, full_w) = self.knots[0], self.knots[-1]
        if most - least < LEAST_SPAN:
            raise NegawattError(
                f"the load could only be moved between {least:.0%} and {most:.0%}, which tells no curve; "
                "end what else is running and calibrate again"
            )
        if full_w - idle_w <= 2 * self.noise_w:
            raise NegawattError(
                f"{', '.join(self.source)} did not follow the load ({idle_w:.3g} W at rest, {full_w:.3g} W "
                f"at full load, ±{self.noise_w:.2g} W of noise): does it measure this machine, and it alone?"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "threads": self.threads,
            "measured": self.measured,
            "source": list(self.source),
            "boundary": self.boundary,
            "covers": list(self.covers),
            "curve": [
                {"load": load, "power_w": watts, "margin_w": self.margin_w(load)}
                for load, watts in self.knots
            ],
            "noise_w": self.noise_w,
            "spread": self.spread,
            "steps": [
                {"work": s.work, "level": s.level, "load": s.load, "power_w": s.power_w, "residual_w": r}
                for s, r in zip(self.steps, self.residuals_w, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PowerCurve:
        """Read back what `to_json` wrote; the fit is made anew from the steps.

        Raises:
            ValueError: it is not such a record, or holds impossible figures.
        """
        try:
            curve = cls(
                machine=dict(data["machine"]),
                threads=int(data["threads"]),
                measured=str(data["measured"]),
                source=tuple(map(str, data["source"])),
                boundary=data["boundary"],
                covers=tuple(map(str, data["covers"])),
                steps=tuple(
                    LoadStep(str(s["work"]), float(s["level"]), float(s["load"]), float(s["power_w"]))
                    for s in data["steps"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a power curve: {exc}") from exc
        possible = curve.boundary in get_args(Boundary) and 1 <= curve.threads <= 65536
        possible = possible and re.fullmatch("[0-9a-f]{16}", str(curve.machine.get("id"))) is not None
        sane = all(0 <= s.level <= 1 and 0 <= s.load <= 1.1 and 0 <= s.power_w <= 1e6 for s in curve.steps)
        kinds = {s.work for s in curve.steps if s.level > 0}
        if not possible or not sane or len(kinds) < 2 or len({s.level for s in curve.steps}) < 3:
            raise ValueError("not a power curve: its figures are impossible or too few")
        try:
            curve.check()
        except NegawattError as exc:
            raise ValueError(str(exc)) from exc
        return curve


def _knots(steps: Sequence[LoadStep]) -> tuple[tuple[float, float], ...]:
    """Mean load and power of every level, pooled where power would fall as load rises."""
    pools: list[tuple[float, float, int]] = []  # mean load, mean watts, how many steps
    for level in sorted({s.level for s in steps}):
        own = [s for s in steps if s.level == level]
        load = sum(s.load for s in own) / len(own)
        pools.append((load, sum(s.power_w for s in own) / len(own), len(own)))
    pools.sort()
    merged: list[tuple[float, float, int]] = []
    for pool in pools:
        merged.append(pool)
        while len(merged) > 1 and (merged[-1][1] < merged[-2][1] or merged[-1][0] <= merged[-2][0]):
            (one, one_w, n), (two, two_w, m) = merged[-2:]
            merged[-2:] = [((one * n + two * m) / (n + m), (one_w * n + two_w * m) / (n + m), n + m)]
    return tuple((load, watts) for load, watts, _ in merged)


def _at(knots: Knots, load: float) -> float:
    """Watts on the lines through the knots; the first and last line go on, but never below 0."""
    if len(knots) == 1:
        return knots[0][1]
    lines = list(pairwise(knots))
    (left, low_w), (right, high_w) = next((line for line in lines if load <= line[1][0]), lines[-1])
    return max(0.0, low_w + (high_w - low_w) * (load - left) / (right - left))
