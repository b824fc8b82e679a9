"""A double of a machine whose package counter moves: RAPL's files in a folder, driven by real work."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from negawatt.limits.cpu import POWERCAP
from negawatt.meter.process import machine_time
from negawatt.testing.powercap import PowercapTree

ZONE = "intel-rapl:0"
STEP_S = 0.002


class PoweredMachine:
    """One package that draws so many joules for each second that a processor of this machine is busy.

    What is busy is real, what a busy second draws is made up: fewer joules where the package's long-term
    limit is lowered, and no work gets slower by that. It says nothing of how real hardware behaves.

    Args:
        root: folder to lay it out in; stands for ``/``.
        busy_w: joules of a busy second.
        capped_w: the same under a limit below `limit_w`.
        limit_w: what the package may draw.
        window_s: over which limits hold on average.

    Attributes:
        stopped: the counter stands still, as that of a machine that does not feed it.
        energy_j: joules drawn so far.
        capped_j: of those, the ones drawn under a limit.
    """

    def __init__(
        self,
        root: Path,
        *,
        busy_w: float = 20.0,
        capped_w: float = 10.0,
        limit_w: float = 100.0,
        window_s: float = 0.05,
    ) -> None:
        self.root, self.stopped = root, False
        self.energy_j = self.capped_j = 0.0
        self._busy_w, self._capped_w, self._limit_uw = busy_w, capped_w, round(limit_w * 1e6)
        self.tree = PowercapTree(root / POWERCAP)
        self.tree.add(ZONE, "package-0", 0)
        self.limit = self.tree.limit(
            ZONE, self._limit_uw, most_uw=self._limit_uw, window_us=round(window_s * 1e6)
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drive, daemon=True)

    def __enter__(self) -> PoweredMachine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _drive(self) -> None:
        before_s = machine_time().busy_s
        while not self._over.wait(STEP_S):
            busy_s = machine_time().busy_s
            spent_s, before_s = busy_s - before_s, busy_s
            if self.stopped or not spent_s:
                continue
            capped = int(self.limit.read_text() or self._limit_uw) < self._limit_uw
            joules = spent_s * (self._capped_w if capped else self._busy_w)
            self.energy_j += joules
            self.capped_j += joules if capped else 0.0
            self.tree.set(ZONE, round(self.energy_j * 1e6))
