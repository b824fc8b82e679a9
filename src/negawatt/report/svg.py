"""The few parts of SVG that the plots need: elements, scales with ticks, and places for labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element; children and attribute values are escaped unless they are `Markup` already.

    ``class_`` gives ``class`` and ``stroke_width`` gives ``stroke-width``; an attribute that is None is
    left out; floats keep one decimal, which is finer than a pixel. Names are ours, values may be anybody's.
    """
    parts = [Markup("<{}").format(name)]
    for key, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown))
    if not children:
        return Markup("").join([*parts, Markup("/>")])
    body = Markup("").join(escape(child) for child in children)
    return Markup("").join([*parts, Markup(">"), body, Markup("</{}>").format(name)])


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


@dataclass(frozen=True)
class Scale:
    """Maps a range of values onto pixels ``start`` to ``end``, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def fit(cls, values: Sequence[float], start: float, end: float, *, may_log: bool) -> Scale:
        """A scale that holds all `values` with air around them; logarithmic when they span 6-fold or more."""
        low, high = min(values), max(values)
        if may_log and low > 0 and high / low >= 6:
            air = (high / low) ** 0.07
            return cls(low / air, high * air, start, end, log=True)
        air = (high - low) * 0.09 or abs(high) * 0.1 or 1.0
        floor = 0.0 if may_log and 0 <= low < 0.45 * high else low - air
        return cls(floor, high + air, start, end)

    def __call__(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def clip(self, value: float) -> float:
        """The pixel of a value, or the nearer end of the scale."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, most: int = 7) -> list[float]:
        """Round values inside the range, at most about so many."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**e for e in range(first, last + 1) for s in steps]
                inside = [t for t in found if self.low <= t <= self.high]
                if len(inside) <= most:
                    return inside
            return inside[:: math.ceil(len(inside) / most)]
        rough = (self.high - self.low) / most
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= rough * 0.999)
        first_tick = math.ceil(self.low / step - 1e-9)
        last_tick = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first_tick, last_tick + 1)]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Shared area in square pixels."""
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(wide, 0.0) * max(high, 0.0)


_GAPS = (13.0, 24.0, 40.0, 62.0)
"""Distances from a point, in pixels, at which its label may stand."""


def place(width: float, height: float, at: tuple[float, float], taken: Sequence[Box], inside: Box) -> Box:
    """Where a label of this size goes near a point: the place that covers the least."""
    x, y = at
    ways = [(1, 0), (-1, 0), (0, -1), (0, 1), (0.9, -0.9), (-0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    candidates = [
        Box(x + dx * (gap + width / 2) - width / 2, y + dy * (gap + height / 2) - height / 2, width, height)
        for gap in _GAPS
        for dx, dy in ways
    ]

    def cost(box: Box) -> float:
        outside = width * height - box.overlap(inside)
        away = math.hypot(box.x + width / 2 - x, (box.y + height / 2 - y) * 3)
        return 20 * outside + sum(box.overlap(other) for other in taken) + away / 8

    return min(candidates, key=cost)
