"""`split`: divides what one component spent into idle, processes, and what nobody can be charged for.

The parts add up to the whole, whatever happened: idle energy is a line of its own, what no visible
process accounts for is another, and neither is ever clamped. Where the component's idle power is
unknown there is no idle line, and those who ran carry it, as `negawatt.meter.attribute` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Joules(NamedTuple):
    """Joules with an interval: an `Energy` without its checks, made ten thousand times a second."""

    value_j: float
    low_j: float
    high_j: float

    def plus(self, other: Joules) -> Joules:
        return Joules(self.value_j + other.value_j, self.low_j + other.low_j, self.high_j + other.high_j)

    def minus(self, other: Joules) -> Joules:
        return Joules(self.value_j - other.value_j, self.low_j - other.high_j, self.high_j - other.low_j)

    def times(self, share: Share) -> Joules:
        """A share of it; of negative joules the largest share is the lowest end."""
        value_j = self.value_j * share.value
        low_j = self.low_j * (share.low if self.low_j >= 0 else share.high)
        high_j = self.high_j * (share.high if self.high_j >= 0 else share.low)
        return Joules(value_j, min(low_j, value_j), max(high_j, value_j))


NOTHING = Joules(0.0, 0.0, 0.0)


class Share(NamedTuple):
    """A part of a whole, from 0 to 1, with what it may be at least and at most."""

    value: float
    low: float
    high: float


class Shares(NamedTuple):
    """How a whole is divided: a share for everybody, in their order, and what is left. Sums to 1."""

    parts: list[Share]
    rest: Share


class Parts(NamedTuple):
    """What a component spent, divided. `idle` is None where it is not known."""

    idle: Joules | None
    parts: list[Joules]
    unattributed: Joules


def by_weight(weights: Sequence[float], rest: float, spare: float = 0.0) -> Shares:
    """Shares in proportion to `weights` of something used, `rest` of which nobody is known for.

    Args:
        weights: what everybody used; non-negative.
        rest: what was used besides.
        spare: what was there to use and was not: whoever did not use it might not owe its upkeep,
            so it lowers the lower end of every share.
    """
    used = math.fsum(weights) + rest
    if used <= 0:
        return Shares([Share(0.0, 0.0, 0.0)] * len(weights), Share(1.0, 1.0, 1.0))
    capacity = used + spare
    parts = [Share(w / used, w / capacity, w / used) for w in weights]
    return Shares(parts, Share(rest / used, rest / capacity, (rest + spare) / capacity))


def mean(first: Shares, second: Shares) -> Shares:
    """Halfway between two ways to divide, neither of which is known to be right; spans both."""

    def between(a: Share, b: Share) -> Share:
        return Share((a.value + b.value) / 2, min(a.low, b.low), max(a.high, b.high))

    parts = [between(a, b) for a, b in zip(first.parts, second.parts, strict=True)]
    return Shares(parts, between(first.rest, second.rest))


def split(whole: Joules, idle: Joules | None, shares: Shares) -> Parts:
    """Divide a component's joules; idle and all parts add up to `whole`."""
    dynamic = whole if idle is None else whole.minus(idle)
    return Parts(idle, [dynamic.times(share) for share in shares.parts], dynamic.times(shares.rest))
