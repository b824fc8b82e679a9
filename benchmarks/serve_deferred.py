"""What do deferred batches emit, beside running them at once and beside the best that was possible?

    python benchmarks/serve_deferred.py --data FOLDER

FOLDER holds a file a zone, ``NAME.csv``, with the columns ``timestamp`` and ``avg_CI`` (grams a kWh, hourly,
a year from January on). Nothing of it belongs to this repository.

1. Batches that arrive at random moments, need 30 minutes to 6 hours and have to be done within 24 hours, one
   at a time on a machine, are run by the server's own rule, asked every quarter of an hour: with a perfect
   forecast, and with `negawatt.carbon.forecast`, which knows the past alone. The rule is told that the work
   takes up to 20 % more or less than it does. Savings are against running at once; "above best" is the excess
   over the cheapest quarter-hours of the 24 hours.
2. The set-up of Wiesner et al., "Let's Wait Awhile" (Middleware 2021), with error-free forecasts: a nightly
   job of 30 minutes at 1 o'clock that may move by up to 8 hours either way; and interruptible training jobs
   of 4 hours to 4 days (uniform) that begin in working hours and, where they would end outside of them, have
   until 9 o'clock of the next working day. The published savings are for Germany, Great Britain and France in
   2020; these zones and this year are others, so the figures show the kind of result, not the same one.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from negawatt.carbon.forecast import ahead
from negawatt.carbon.shift import cheapest_mean, interruptible, solid
from negawatt.serve.deferral import Pending, choose

SLOT_S = 900
BATCHES = 250
WINDOW_H = 24
ESTIMATE_OFF = 0.2
TRAININGS = 3387
UTC_OFFSET_H = {"BPAT": -8, "CISO": -8, "ERCO": -6, "NYIS": -5, "PJM": -5}
"""Of the zones' own time, which nights and working hours go by; the others' is taken to be UTC."""
PUBLISHED = (
    "published: nightly −13.5 / −10.2 / −7.5 %, to the next workday −8.0 / −9.2 / −6.3 % (DE / GB / FR)"
)

Foresight = Callable[[Sequence[float], int, int], list[float]]
"""Hours as they are, the present one, how many to tell: the next hours, the present one first."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    zones = {file.stem: hours_of(file) for file in sorted(folder.glob("*.csv"))}
    if not zones:
        sys.exit(f"{folder} holds no .csv")
    print(f"| zone | forecast | late of {BATCHES} | saved | best possible | above best |\n|{'---|' * 6}")
    for zone, hours in zones.items():
        for name, foresight in (("perfect", perfect), ("from the past", from_the_past)):
            print(f"| {zone} | {name} | {deferred(hours, foresight)} |", flush=True)
    print(f"\n| zone | nightly ±8 h | to the next workday |\n|{'---|' * 3}")
    for zone, hours in zones.items():
        print(
            f"| {zone} | {nightly(hours, UTC_OFFSET_H.get(zone, 0)):+.1%} | "
            f"{next_workday(hours, UTC_OFFSET_H.get(zone, 0)):+.1%} |",
            flush=True,
        )
    print(f"\n{PUBLISHED}")


def hours_of(file: Path) -> list[float]:
    """A year of hours; those without a figure lie on the line between their neighbours."""
    with file.open(newline="") as text:
        figures = [row["avg_CI"] for row in csv.DictReader(text)]
    hours = [float(figure) if figure else math.nan for figure in figures]
    gaps = [place for place, hour in enumerate(hours) if math.isnan(hour)]
    for place in gaps:
        end = next((p for p in range(place, len(hours)) if not math.isnan(hours[p])), None)
        before = hours[place - 1] if place else hours[end or 0]
        hours[place] = before if end is None else before + (hours[end] - before) / (end - place + 1)
    if gaps:
        print(f"{file.name}: {len(gaps)} hours without a figure were filled in", file=sys.stderr)
    return hours


def perfect(hours: Sequence[float], now: int, count: int) -> list[float]:
    return list(hours[now : now + count])


def from_the_past(hours: Sequence[float], now: int, count: int) -> list[float]:
    """What the present hour is counts as known, as services tell it."""
    return [hours[now], *ahead(hours[now - 14 * 24 : now + 1], count - 1)]


def deferred(hours: Sequence[float], foresight: Foresight) -> str:
    rng = random.Random(7)
    late, here, best, once = 0, 0.0, 0.0, 0.0
    for _ in range(BATCHES):
        start_s = rng.uniform(15 * 24, len(hours) - WINDOW_H - 2) * 3600
        work_s = rng.uniform(0.5, 6) * 3600
        told_s = work_s * rng.uniform(1 - ESTIMATE_OFF, 1 + ESTIMATE_OFF)
        grams, done_s = run(hours, foresight, start_s, work_s, told_s)
        late += done_s > start_s + WINDOW_H * 3600
        slots = quarters(hours, start_s, WINDOW_H * 3600 // SLOT_S)
        here += grams
        best += cheapest_mean(slots, work_s / SLOT_S) * work_s
        once += sum(slots[: int(work_s / SLOT_S)]) * SLOT_S + slots[int(work_s / SLOT_S)] * (work_s % SLOT_S)
    return f"{late} | {1 - here / once:.1%} | {1 - best / once:.1%} | {here / best - 1:.1%}"


def run(
    hours: Sequence[float], foresight: Foresight, start_s: float, work_s: float, told_s: float
) -> tuple[float, float]:
    """Go through a batch by the server's rule: its rate times seconds, and when it is done."""
    deadline_s = start_s + WINDOW_H * 3600
    now_s, left_s, grams = start_s, work_s, 0.0
    known: tuple[int, list[float]] = (-1, [])
    while left_s > 0:
        hour = int(now_s // 3600)
        if known[0] != hour:
            known = hour, foresight(hours, hour, WINDOW_H + 2)
        rates = [
            known[1][min(int((now_s + slot * SLOT_S) // 3600) - hour, WINDOW_H + 1)]
            for slot in range(math.ceil((deadline_s - now_s) / SLOT_S))
        ]
        # What is left is thought to be as far off as the whole was.
        if choose(now_s, [Pending(told_s * left_s / work_s, deadline_s)], rates, SLOT_S).runs:
            slice_s = min(SLOT_S, left_s)
            grams += quarters(hours, now_s, 1)[0] * slice_s
            left_s -= slice_s
            now_s += slice_s
        else:
            now_s += SLOT_S
    return grams, now_s


def quarters(hours: Sequence[float], start_s: float, count: int) -> list[float]:
    """Mean of each slot from a moment on."""
    found = []
    for slot in range(count):
        begin = start_s + slot * SLOT_S
        hour, into = divmod(begin, 3600)
        over = max(0.0, into + SLOT_S - 3600) / SLOT_S
        found.append(hours[int(hour)] * (1 - over) + (hours[int(hour) + 1] * over if over else 0.0))
    return found


def nightly(hours: Sequence[float], offset_h: int) -> float:
    """Change by moving a job of half an hour at 1 o'clock by up to 8 hours; an hour's halves are alike."""
    usual, moved = 0.0, 0.0
    for night in range(24, len(hours) - 24, 24):
        one = night + 1 - offset_h
        halves = [hours[hour] for hour in range(one - 8, one + 8) for _ in range(2)]
        usual += hours[one]
        moved += halves[solid(halves, 1)]
    return moved / usual - 1


def next_workday(hours: Sequence[float], offset_h: int) -> float:
    """Change by interrupting training jobs that have until the next working day's morning."""
    rng = random.Random(7)
    begin = datetime(2022, 1, 1, tzinfo=UTC) + timedelta(
        hours=offset_h
    )  # the year whose weekdays the hours are counted by
    usual, moved = 0.0, 0.0
    for _ in range(TRAININGS):
        while True:
            start = rng.randrange(len(hours) - 8 * 24)
            if works(begin + timedelta(hours=start)):
                break
        length = rng.randint(4, 96)
        end = start + length
        while not works(begin + timedelta(hours=end)):
            end += 1
        window = hours[start:end]
        usual += math.fsum(window[:length])
        moved += math.fsum(window[slot] for slot in interruptible(window, length))
    return moved / usual - 1


def works(moment: datetime) -> bool:
    return moment.weekday() < 5 and 9 <= moment.hour < 17


if __name__ == "__main__":
    main()
