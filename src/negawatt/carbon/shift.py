"""When to run work that can wait: the cheapest slots before a deadline.

Pure functions over a list of rates, one a slot, all slots of one length and the first one beginning now. A
rate is anything to be made small: grams a kWh, a price, a mixture. Ties go to the earlier slot, so that equal
rates mean running at once.

The two basic shapes are those of Wiesner et al., "Let's Wait Awhile" (Middleware 2021): a solid job takes the
window with the smallest mean, an interruptible one the cheapest slots.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from negawatt.carbon.steps import Step, over
from negawatt.errors import Infeasible, UsageError


@dataclass(frozen=True, slots=True)
class Job:
    """Work that may be interrupted between slots.

    Attributes:
        slots: how many it needs.
        deadline: number of slots from now after which it has to be done.
    """

    slots: int
    deadline: int

    def __post_init__(self) -> None:
        if self.slots < 0:
            raise UsageError(f"a job needs 0 slots or more, not {self.slots}")


def solid(rates: Sequence[float], slots: int) -> int:
    """First slot of the window of so many slots with the smallest mean.

    Raises:
        Infeasible: there are fewer slots.
    """
    _enough(rates, slots)
    if slots == 0:
        return 0
    sums = [math.fsum(rates[start : start + slots]) for start in range(len(rates) - slots + 1)]
    return sums.index(min(sums))


def interruptible(rates: Sequence[float], slots: int) -> tuple[int, ...]:
    """The so many cheapest slots, in the order of time.

    Raises:
        Infeasible: there are fewer slots.
    """
    _enough(rates, slots)
    return tuple(sorted(heapq.nsmallest(slots, range(len(rates)), key=lambda slot: (rates[slot], slot))))


def shared(rates: Sequence[float], jobs: Sequence[Job]) -> tuple[int, ...]:
    """The cheapest slots in which jobs that follow each other on one machine are all done in time.

    In these slots the job with the earliest deadline runs first. Deadlines nest, so taking for each in turn
    the cheapest slots that are left before its deadline is optimal.

    Raises:
        Infeasible: they cannot all be done in time.
    """
    free = list(range(len(rates)))
    taken: list[int] = []
    for job in sorted(jobs, key=lambda job: job.deadline):
        before = [slot for slot in free if slot < job.deadline]
        if len(before) < job.slots:
            raise Infeasible(
                f"{job.slots} slots of work are to be done by slot {job.deadline}, and {len(before)} are free"
            )
        chosen = heapq.nsmallest(job.slots, before, key=lambda slot: (rates[slot], slot))
        taken += chosen
        gone = set(chosen)
        free = [slot for slot in free if slot not in gone]
    return tuple(sorted(taken))


def slack(jobs: Sequence[Job]) -> int:
    """How many slots can pass before jobs on one machine must run without a pause; below 0 it is too late."""
    spare: list[int] = []
    before = 0
    for job in sorted(jobs, key=lambda job: job.deadline):
        before += job.slots
        if job.slots:
            spare.append(job.deadline - before)
    return min(spare, default=10**9)


def mean(rates: Sequence[float], slots: Sequence[int], work_slots: float) -> float:
    """Mean rate over work that fills some slots in the order of time, the last of them perhaps not whole.

    Args:
        slots: at least as many as the work fills.
        work_slots: how much work, in slots; above 0.
    """
    if work_slots <= 0 or work_slots > len(slots) + 1e-9:
        raise UsageError(f"expected work of 0 to {len(slots)} slots, not {work_slots:g}")
    left, parts = work_slots, []
    for slot in slots:
        share = min(1.0, left)
        if share <= 0:
            break
        parts.append(share * rates[slot])
        left -= share
    return math.fsum(parts) / work_slots


def cheapest_mean(rates: Sequence[float], work_slots: float) -> float:
    """The smallest mean rate that interruptible work can have; the slot that is not filled is the dearest.

    Raises:
        Infeasible: there are fewer slots than the work fills.
    """
    chosen = interruptible(rates, math.ceil(work_slots - 1e-9))
    return mean(rates, sorted(chosen, key=lambda slot: rates[slot]), work_slots)


def rates_of(steps: Sequence[Step], start: datetime, end: datetime, slot_s: float) -> list[float]:
    """The mean rate of every whole slot between two moments.

    Raises:
        NegawattError: the steps do not cover them.
    """
    count = int((end - start).total_seconds() / slot_s + 1e-9)
    length = timedelta(seconds=slot_s)
    ordered = sorted(steps, key=lambda step: step.start)
    found, first = [], 0
    for number in range(count):
        begin = start + number * length
        while first < len(ordered) and ordered[first].end <= begin:
            first += 1
        last = first
        while last < len(ordered) and ordered[last].start < begin + length:
            last += 1
        found.append(over(ordered[first:last], begin, begin + length).value)
    return found


def _enough(rates: Sequence[float], slots: int) -> None:
    if slots > len(rates):
        raise Infeasible(f"the work needs {slots} slots and there are {len(rates)} before the deadline")
