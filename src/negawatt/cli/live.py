"""`LiveLine`: what a running command has spent so far, at the right edge of the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from negawatt.meter.command import Follower
from negawatt.meter.measurement import Measurement
from negawatt.meter.meter import Window

_REDRAW_S = 0.5


class LiveLine(Follower):
    """Shows joules, mean watts and seconds on standard error, twice a second.

    The command writes to the same terminal. So the line stands at the right edge of whatever row
    the cursor is in, as some shells show the time, and the cursor goes back to where it was.
    """

    def __init__(self) -> None:
        self._drawn_s = time.monotonic()
        self._shown = 0

    def look(self, window: Window) -> None:
        if time.monotonic() - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = time.monotonic()
        spent = window.so_far()
        joules = spent.energy.value_j
        seconds = f"{spent.duration_s:.0f} s"
        watts = "" if joules is None else f", {joules / max(spent.duration_s, 1e-9):.3g} W"
        figure = "not measured" if joules is None else str(spent.energy).partition(" (")[0]
        self._draw(f"{figure}{watts}, {seconds}")

    def end(self, measurement: Measurement) -> Sequence[str]:
        if self._shown:
            self._draw("")
        return ()

    def _draw(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some do not tell
        except OSError:
            return
        width = max(len(text), self._shown)
        if width >= columns:
            return
        self._shown = len(text)
        padded = f"{text:>{width}}"
        # save the cursor, go to the column, write dimmed, return
        sys.stderr.write(f"\x1b7\x1b[{columns - width + 1}G\x1b[2m{padded}\x1b[0m\x1b8")
        sys.stderr.flush()
