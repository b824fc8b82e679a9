"""`choose`: whether work that can wait runs now, given what the grid is expected to be until its deadline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from negawatt.carbon.shift import Job, shared, slack
from negawatt.errors import Infeasible

MARGIN = 1.25
"""The work may take this much longer than it is thought to and still be done in time."""

Why = Literal["nothing to do", "cheap", "deadline", "no forecast", "cheaper later"]


@dataclass(frozen=True, slots=True)
class Pending:
    """Work that is left of a batch.

    Attributes:
        work_s: seconds that it is thought to take when it runs without a pause.
        deadline_s: when it has to be done, in seconds since the epoch.
    """

    work_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do until the next slot begins.

    Attributes:
        runs: whether to.
        why: in a word; ``deadline`` says that waiting any longer would risk being late.
    """

    runs: bool
    why: Why


def choose(
    now_s: float, pending: Sequence[Pending], rates: Sequence[float], slot_s: float, margin: float = MARGIN
) -> Choice:
    """Whether to run now.

    It runs when this slot is one of the cheapest in which all of the work can be done in time, and whenever
    the work, longer by the margin and a slot for what was rounded, would otherwise come too late. Asked anew
    every slot with what is then known, it makes up for forecasts and estimates that were wrong.

    Args:
        now_s: in seconds since the epoch.
        pending: batches that wait or run, in any order.
        rates: what is expected of each slot, the first beginning now. Slots beyond are taken to be as the
            mean of the known ones; without any the work runs at once.
        slot_s: length of a slot.
        margin: see `MARGIN`.
    """
    left = [p for p in pending if p.work_s > 0]
    if not left:
        return Choice(False, "nothing to do")
    if not rates:
        return Choice(True, "no forecast")
    careful = [Job(math.ceil(p.work_s * margin / slot_s), _slots_until(p, now_s, slot_s)) for p in left]
    if slack(careful) <= 1:
        return Choice(True, "deadline")
    jobs = [Job(math.ceil(p.work_s / slot_s), _slots_until(p, now_s, slot_s)) for p in left]
    furthest = max(job.deadline for job in jobs)
    usual = math.fsum(rates) / len(rates)
    known = [*rates[:furthest], *([usual] * (furthest - len(rates)))]
    try:
        cheap = shared(known, jobs)
    except Infeasible:
        return Choice(True, "deadline")
    return Choice(True, "cheap") if cheap[0] == 0 else Choice(False, "cheaper later")


def _slots_until(pending: Pending, now_s: float, slot_s: float) -> int:
    return max(0, math.floor((pending.deadline_s - now_s) / slot_s))
