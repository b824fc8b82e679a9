"""`forecast`: intensities of the next days from those of the days before, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from negawatt.carbon.amount import Factor
from negawatt.carbon.shift import rates_of
from negawatt.carbon.steps import Step
from negawatt.energy import Provenance
from negawatt.errors import NegawattError

HOUR = timedelta(hours=1)
DAYS = 14
"""Days that are looked back on; older weather says nothing."""
HALF_LIFE_DAYS = 5.0
DECAY = 0.95
"""This share of how far off the newest hours were is still off an hour later."""
_NEWEST = 3


def ahead(past: Sequence[float], hours: int) -> list[float]:
    """The next hours: each the usual one of its hour of the day, as far off as the newest hours are.

    The usual hour is the mean of the same hour of the last days, newer days counting more. To it is added how
    far the newest three hours are from theirs, fading by the hour. Below 0 nothing goes.

    Args:
        past: hourly rates up to now, the newest last; at least 24.
        hours: how many to tell.

    Raises:
        NegawattError: the past covers less than a day.
    """
    days = min(len(past) // 24, DAYS)
    if days == 0:
        raise NegawattError(f"a forecast needs the last 24 hours, and {len(past)} are known")
    weights = [0.5 ** (ago / HALF_LIFE_DAYS) for ago in range(days)]
    whole = math.fsum(weights)
    usual = []  # of the hours that begin 24, 23, … 1 hours ago, and of those that come in this order
    for place in range(24):
        values = past[len(past) - 24 + place :: -24]
        usual.append(math.fsum(w * v for w, v in zip(weights, values, strict=False)) / whole)
    off = math.fsum(past[-ago] - usual[-ago] for ago in range(1, _NEWEST + 1)) / _NEWEST
    return [max(0.0, usual[hour % 24] + off * DECAY ** (hour + 1)) for hour in range(hours)]


def forecast(history: Sequence[Step], now: datetime, end: datetime) -> list[Step]:
    """`ahead` for rates with times: hour by hour from the end of what is known until an end.

    The interval of each hour reaches over all values that its hour of the day had in the last days.

    Args:
        history: of one unit, at least the last 24 hours before `now`; what ends later is not looked at.
        now: with a time zone.

    Raises:
        NegawattError: the history covers less than a day.
    """
    known = [step for step in history if step.end <= now]
    if not known:
        raise NegawattError(f"a forecast needs the last 24 hours before {now:%Y-%m-%d %H:%M}")
    first, last = min(step.start for step in known), max(step.end for step in known)
    hours = min(int((last - first) / HOUR), DAYS * 24)
    past = rates_of(known, last - hours * HOUR, last, 3600)
    found = []
    for number, value in enumerate(ahead(past, max(0, math.ceil((end - last) / HOUR)))):
        same = [value, *past[len(past) - 24 + number % 24 :: -24]]
        rate = Factor(
            value,
            min(same),
            max(same),
            known[0].rate.unit,
            Provenance.ESTIMATED,
            f"forecast from the {hours} hours before",
        )
        found.append(Step(last + number * HOUR, last + (number + 1) * HOUR, rate))
    return [step for step in found if step.end > now]
