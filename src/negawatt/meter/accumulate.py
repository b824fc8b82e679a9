"""`Accumulator`: turns a sensor's raw counters into totals that only ever grow.

Raw counters wrap, are reset by a driver, freeze, vanish, and now and then return nonsense. Every
step between two readings is judged once, here, so that windows above are plain differences.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from negawatt.energy import Energy, Provenance
from negawatt.errors import SensorError
from negawatt.meter.sensor import Counter, Sensor, attempt


@dataclass(frozen=True, slots=True)
class Total:
    """Joules of one component since its accumulator began.

    Attributes:
        at_s: monotonic time of the last good reading that is in it.
        value_j, low_j, high_j: joules, and the ends of what they may be.
        moved_at_s: when the counter was last seen to advance.
        gaps: steps that had to be filled in (a reset, an ambiguous wrap, a standstill).
        counter: the raw counter at `at_s`.
        power_w: mean power over the last step that moved and was longer than the counter's refresh.
        gap: what the last of them was.
        blur_s: how far from `at_s` the counter may have been read: a read takes time, and more when it
            is held up.
        failure: why readings after `at_s` failed; empty when the last one succeeded.
    """

    at_s: float
    value_j: float
    low_j: float
    high_j: float
    moved_at_s: float
    gaps: int
    counter: Counter
    power_w: float = 0.0
    gap: str = ""
    failure: str = ""
    blur_s: float = 0.0


class Accumulator:
    """A sensor with wraps, resets and failed reads taken care of. Safe to use from many threads."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self._totals: dict[str, Total] = {}
        self._suspects: dict[str, tuple[float, Counter, float]] = {}
        self._lock, self._pid = threading.Lock(), os.getpid()

    def update(self) -> Mapping[str, Total]:
        """Read the sensor and return the totals; a failed read leaves them and is noted in each."""
        if self._pid != os.getpid():  # forked: whoever held the lock is not in this process
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            begun_s = time.monotonic()
            reading = attempt(self.sensor)
            ended_s = time.monotonic()
            if isinstance(reading, SensorError):
                failure = str(reading) or type(reading).__name__
                self._totals = {n: replace(t, failure=failure) for n, t in self._totals.items()}
                return dict(self._totals)
            at_s, blur_s = reading.at_s, 0.0
            if begun_s <= at_s <= ended_s:  # others tell when it was by a clock of their own
                blur_s = max(at_s - begun_s, ended_s - at_s)
            for name, counter in reading.counters.items():
                self._totals[name] = self._step(name, at_s, counter, blur_s)
            for name in self._totals.keys() - reading.counters.keys():
                self._totals[name] = replace(self._totals[name], failure=f"{name} is no longer reported")
            return dict(self._totals)

    @property
    def latest(self) -> Mapping[str, Total]:
        """The totals of the last update, without reading."""
        return dict(self._totals)

    def _step(self, name: str, at_s: float, counter: Counter, blur_s: float) -> Total:
        total = self._totals.get(name)
        if total is None:
            return Total(at_s, 0.0, 0.0, 0.0, at_s, 0, counter, blur_s=blur_s)
        suspect = self._suspects.pop(name, None)
        # A read that was held up may have seen the counter that much earlier, or later, than it says.
        step_j = advance_j(total.counter, counter, at_s - total.at_s + total.blur_s + blur_s)
        if step_j is not None:
            return _advanced(total, at_s, counter, step_j, blur_s)
        if suspect is not None:
            # Two readings in a row disagree with the total: if they agree with each other, the
            # counter was reset between them and the total.
            since_j = advance_j(suspect[1], counter, at_s - suspect[0] + suspect[2] + blur_s)
            if since_j is not None:
                return replace(_after_reset(total, suspect, at_s, counter, since_j), blur_s=blur_s)
        self._suspects[name] = (at_s, counter, blur_s)
        return replace(
            total, failure=f"{name} went from {total.counter.energy_j:.6g} to {counter.energy_j:.6g} J"
        )


def advance_j(before: Counter, after: Counter, elapsed_s: float) -> float | None:
    """Joules between two raw readings, allowing for one wrap; None if no plausible step joins them."""
    most_j = after.limit_w * (max(elapsed_s, 0.0) + after.refresh_s) + after.resolution_j
    step_j = after.energy_j - before.energy_j
    if step_j < 0 and after.range_j is not None:
        step_j += after.range_j
    return step_j if 0 <= step_j <= most_j else None


def _advanced(total: Total, at_s: float, counter: Counter, step_j: float, blur_s: float) -> Total:
    low, high = counter.band
    # A stretch long enough to wrap twice unseen: the most that may have been missed is in `high`.
    wraps = 0.0
    elapsed_s = at_s - total.at_s
    least_s = max(counter.refresh_s, total.blur_s + blur_s)  # in less nobody knows how fast it went
    doubt_j = max(0.0, counter.doubt_j - total.counter.doubt_j)
    if counter.range_j is not None:
        spare_j = counter.limit_w * elapsed_s - step_j
        wraps = max(0, spare_j // counter.range_j) * counter.range_j
    gap = f"the counter was not read for {elapsed_s:.0f} s and may have wrapped unseen" if wraps else ""
    lost_j = 0.0
    if step_j > 0 and (stood_s := _stood_s(total, counter)):
        # It moves again: either it had caught up by then, or what flowed meanwhile is not in it.
        lost_j = total.power_w * stood_s
        gap = f"the counter stood still for {stood_s:.3g} s and may have lost what flowed"
    return Total(
        at_s,
        total.value_j + step_j,
        total.low_j + step_j * low - doubt_j,
        total.high_j + step_j * high + doubt_j + wraps + lost_j,
        at_s if step_j > 0 else total.moved_at_s,
        total.gaps + bool(gap),
        counter,
        step_j / elapsed_s if step_j > 0 and elapsed_s > least_s else total.power_w,
        gap or total.gap,
        blur_s=blur_s,
    )


def _stood_s(total: Total, counter: Counter, begun_s: float = -math.inf) -> float:
    """For how long a measured counter had not moved when it was last read; 0 if that is nothing odd.

    Energy cannot stand still: a counter that does for ten refreshes, a second, and ten times as long
    as one step of its resolution takes, has stopped. Power that is sampled may well be zero.
    """
    if counter.provenance is not Provenance.MEASURED or total.power_w <= 0:
        return 0.0
    stood_s = total.at_s - max(total.moved_at_s, begun_s)
    usual_s = max(0.1, counter.refresh_s, counter.resolution_j / total.power_w)
    return stood_s if stood_s > 10 * usual_s else 0.0


def _after_reset(
    total: Total, suspect: tuple[float, Counter, float], at_s: float, counter: Counter, since_j: float
) -> Total:
    """Carry on after a reset. The stretch in which it happened is filled with the power around it."""
    gap_s = suspect[0] - total.at_s
    rest_s = at_s - suspect[0]
    power_w = since_j / rest_s if rest_s > 0 else 0.0
    filled_j = min(power_w, counter.limit_w) * gap_s
    low, high = counter.band
    return Total(
        at_s,
        total.value_j + filled_j + since_j,
        total.low_j + since_j * low,
        total.high_j + 2 * filled_j * high + since_j * high,
        at_s,
        total.gaps + 1,
        counter,
        power_w,
        "the counter was reset in between",
    )


def window(before: Total, after: Total, start_s: float, stop_s: float) -> Energy:
    """Energy of one component between two moments, from the totals taken at them.

    The totals may be older than the moments (a read failed, a sensor refreshes slowly): the power
    seen between them is carried over to the part not covered, and the interval widened by as much.
    The interval also holds one refresh and one resolution step of the counter, and that it may have
    been read at any moment of a read.
    """
    covered_s = after.at_s - before.at_s
    duration_s = stop_s - start_s
    counter = after.counter
    if covered_s <= 0 or duration_s <= 0:
        return Energy.missing(after.failure or "the window holds no reading")
    still_s = stop_s - max(after.moved_at_s, start_s)
    value_j = after.value_j - before.value_j
    if value_j == 0 and after.moved_at_s <= before.at_s:
        if covered_s > 10 * counter.refresh_s:
            return Energy.missing(f"the counter did not move for {still_s:.3g} s")
        return Energy.missing(
            f"the window of {duration_s:.3g} s is short for a counter refreshed every {counter.refresh_s:g} s"
        )
    stood_s = _stood_s(after, counter, before.at_s)
    covered_s -= stood_s  # a counter that froze tells nothing of the time since
    power_w = value_j / max(covered_s, counter.refresh_s)
    uncovered_s = duration_s - covered_s
    # What the last refresh before either end held back was drawn at the power there.
    blur_s = before.blur_s + after.blur_s
    least_s = max(covered_s - blur_s, counter.refresh_s)
    most_w = min(value_j / least_s, counter.limit_w) if least_s > 0 else counter.limit_w
    edge_w = max(power_w, most_w, before.power_w, after.power_w)
    edge_j = edge_w * (abs(uncovered_s) + counter.refresh_s + blur_s) + counter.resolution_j
    value_j += power_w * uncovered_s
    low_j = after.low_j - before.low_j + power_w * uncovered_s - edge_j
    high_j = after.high_j - before.high_j + power_w * uncovered_s + edge_j
    provenance = counter.provenance
    reason = ""
    if after.gaps > before.gaps:
        provenance, reason = max(provenance, Provenance.DERIVED), after.gap
    elif stood_s:
        provenance = max(provenance, Provenance.DERIVED)
        reason = f"the counter did not move for the last {stood_s:.3g} s"
    elif failure := after.failure or before.failure:
        provenance, reason = max(provenance, Provenance.DERIVED), failure
    return Energy(value_j, max(0.0, min(low_j, value_j)), max(high_j, value_j), provenance, reason)
