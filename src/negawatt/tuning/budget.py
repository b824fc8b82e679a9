"""`Budget`: the seconds and joules that a search may spend, and what is left of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from negawatt.errors import UsageError
from negawatt.meter import Meter


@dataclass
class Budget:
    """What a search may spend, earlier sittings included.

    Joules are kept as seconds are: what is left of them, at the pace so far, is so many seconds; whichever
    runs out first counts. A measurement that has begun is ended, so the last one may overrun a little.

    Attributes:
        time_s: seconds for all of it.
        energy_j: joules for all of it; None for as many as the time takes.
        earlier_s, earlier_j: spent by earlier sittings.
        elsewhere_j: tells the joules that other machines spent on this one.
    """

    time_s: float
    energy_j: float | None = None
    earlier_s: float = 0.0
    earlier_j: float = 0.0
    elsewhere_j: Callable[[], float] = field(default=lambda: 0.0, repr=False)
    _meter: Meter | None = field(default=None, repr=False)
    _started: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("time", self.time_s), ("energy", self.energy_j)):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"the {name} budget must be a number above 0, not {value}")

    def begin(self, meter: Meter) -> None:
        """From now on `meter` tells the joules.

        Raises:
            UsageError: joules are to be kept, and nothing on this machine tells them.
        """
        self._meter, self._started = meter, time.monotonic()
        if self.energy_j is not None and meter.so_far().energy.value_j is None:
            raise UsageError("nothing here tells joules, so no energy budget can be kept; give --time-budget")

    def used_s(self) -> float:
        return self.earlier_s + time.monotonic() - self._started

    def used_j(self) -> float:
        """Joules so far; only asked where they are to be kept."""
        now = self._meter.so_far().energy.value_j if self._meter else None
        return self.earlier_j + (now or 0.0) + self.elsewhere_j()

    def left_s(self, share: float = 1.0) -> float:
        """Seconds until a share of the time or of the joules is used up; negative when it is."""
        used_s = self.used_s()
        left_s = share * self.time_s - used_s
        if self.energy_j is None:
            return left_s
        used_j = self.used_j()
        if used_j <= 0 or used_s <= 0:
            return left_s
        return min(left_s, (share * self.energy_j - used_j) * used_s / used_j)

    @property
    def whole_s(self) -> float:
        """How long all of it may take: the time, or what the joules last at the pace so far."""
        return self.used_s() + max(0.0, self.left_s()) if self.energy_j is not None else self.time_s
