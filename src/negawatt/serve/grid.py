"""`Grid`: what the carbon intensity is, is expected to be, and was, slot by slot."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from negawatt.carbon import Factor, IntensitySource, Step
from negawatt.carbon.forecast import DAYS, forecast
from negawatt.carbon.shift import rates_of
from negawatt.errors import NegawattError

_PAST = timedelta(days=DAYS)
_ASKED_S = 900.0
"""An answer about the future is used for as long."""


class Grid:
    """Asks a source of intensities, and fills in what it does not tell of the future from the past.

    Its methods may wait for a service on the network: call them from a thread.

    Args:
        source: hours, always the same figure, or None where the grid is not known.
    """

    def __init__(self, source: IntensitySource | Factor | None) -> None:
        self._source = source
        self._kept: tuple[float, float, list[Step]] | None = None

    def expected(self, now_s: float, end_s: float, slot_s: float) -> list[float]:
        """Grams a kWh of the slots from now on, as far as anything tells; empty where nothing does."""
        if self._source is None:
            return []
        if isinstance(self._source, Factor):
            return [self._source.value] * max(1, int((end_s - now_s) / slot_s))
        kept = self._kept
        if kept is None or now_s - kept[0] > _ASKED_S or now_s < kept[0] or end_s > kept[1] + slot_s:
            kept = self._kept = (now_s, end_s, self._told(_moment(now_s), _moment(end_s)))
        reach_s = _reach_s(kept[2], now_s)
        return _rates(kept[2], now_s, min(end_s, reach_s), slot_s)

    def seen(self, start_s: float, end_s: float, slot_s: float) -> list[float]:
        """Grams a kWh of the slots of a time that is over, from its start as far as they are known."""
        if self._source is None:
            return []
        if isinstance(self._source, Factor):
            return [self._source.value] * max(1, int((end_s - start_s) / slot_s))
        steps = self._asked(_moment(start_s), _moment(end_s))
        return _rates(steps, start_s, min(end_s, _reach_s(steps, start_s)), slot_s)

    def _told(self, now: datetime, end: datetime) -> list[Step]:
        steps = sorted(self._asked(now, end), key=lambda step: step.start)
        reach = _moment(_reach_s(steps, now.timestamp()))
        if reach >= end:
            return steps
        known = [step for step in steps if step.end <= reach]
        before = {step.start: step for step in (*self._asked(now - _PAST, now), *known)}
        try:
            return [*known, *forecast(list(before.values()), max(now, reach), end)]
        except NegawattError:
            return steps

    def _asked(self, start: datetime, end: datetime) -> Sequence[Step]:
        assert self._source is not None and not isinstance(self._source, Factor)
        try:
            return self._source.steps(start, end)
        except NegawattError:
            return []


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _reach_s(steps: Sequence[Step], from_s: float) -> float:
    """How far steps reach from a time on without a gap."""
    reach = _moment(from_s)
    for step in sorted(steps, key=lambda step: step.start):
        if step.start <= reach < step.end:
            reach = step.end
    return reach.timestamp()


def _rates(steps: Sequence[Step], start_s: float, end_s: float, slot_s: float) -> list[float]:
    try:
        return rates_of(steps, _moment(start_s), _moment(end_s), slot_s)
    except NegawattError:
        return []
