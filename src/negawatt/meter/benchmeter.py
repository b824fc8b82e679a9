"""A bench meter's CSV log, replayed by its timestamps.

The file has a header; the first column is the time (seconds since 1970, or ISO 8601, with a zone
or in local time), and one column is power in watts (``power_w`` or a name that starts with
``power``) or cumulative energy (``energy_j``, ``energy_wh``).
"""

from __future__ import annotations

import csv
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from negawatt.energy import Energy, Provenance
from negawatt.errors import SensorError
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent

_ENERGY = {"energy_j": 1.0, "energy_wh": 3600.0, "energy_kwh": 3.6e6}


@dataclass(frozen=True)
class Log:
    """Samples of a bench meter in the order of time.

    Attributes:
        unix_s: seconds since 1970, strictly increasing.
        energy_j: joules since the first sample.
        doubt_j: by how much that may be off, from power that changed between samples.
    """

    unix_s: Sequence[float]
    energy_j: Sequence[float]
    doubt_j: Sequence[float]

    def at(self, unix_s: float) -> tuple[float, float]:
        """Joules and doubt at a moment inside the log, interpolated."""
        after = min(max(bisect_right(self.unix_s, unix_s), 1), len(self.unix_s) - 1)
        before = after - 1
        share = (unix_s - self.unix_s[before]) / (self.unix_s[after] - self.unix_s[before])

        def between(values: Sequence[float]) -> float:
            return values[before] + share * (values[after] - values[before])

        return between(self.energy_j), between(self.doubt_j)

    def energy(self, start_unix_s: float, stop_unix_s: float) -> Energy:
        """Joules between two moments; missing where the log does not cover them."""
        if not self.unix_s[0] <= start_unix_s <= stop_unix_s <= self.unix_s[-1]:
            first, last = (
                datetime.fromtimestamp(t).isoformat(" ", "seconds") for t in (self.unix_s[0], self.unix_s[-1])
            )
            return Energy.missing(f"the bench meter's log covers {first} to {last} only")
        (before_j, doubt_before_j), (after_j, doubt_after_j) = self.at(start_unix_s), self.at(stop_unix_s)
        step_j = max(b - a for a, b in zip(self.energy_j, self.energy_j[1:], strict=False))
        joules, doubt_j = after_j - before_j, doubt_after_j - doubt_before_j
        edge_j = min(step_j, joules) if joules > 0 else step_j
        return Energy(
            joules, max(0.0, joules - doubt_j - edge_j), joules + doubt_j + edge_j, Provenance.DERIVED
        )


def read_log(path: Path) -> Log:
    """Read a bench meter's CSV file.

    Raises:
        SensorAbsent: there is no such file.
        SensorError: it is not laid out as described, or holds fewer than two samples.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _log(path, csv.reader(file))
    except FileNotFoundError as exc:
        raise SensorAbsent(f"there is no file {path}") from exc
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise SensorError(f"{path} cannot be read: {exc}") from exc


def _log(path: Path, rows: Iterable[list[str]]) -> Log:
    rows = iter(rows)
    header = [name.strip().lower() for name in next(rows, [])]
    column = next((i for i, n in enumerate(header) if n in _ENERGY or n.startswith("power")), None)
    if column is None:
        raise SensorError(
            f"{path} needs a column power_w or energy_j; it has {', '.join(header) or 'no header'}"
        )
    scale = _ENERGY.get(header[column])
    unix_s: list[float] = []
    energy_j: list[float] = []
    doubt_j: list[float] = []
    last_w = 0.0
    for line, row in enumerate(rows, 2):
        if len(row) <= column:
            continue  # the line the meter is just writing
        try:
            now_s, value = _seconds(row[0]), float(row[column])
        except ValueError as exc:
            raise SensorError(f"{path}, line {line}: expected a time and a number and found {row}") from exc
        if unix_s and now_s <= unix_s[-1]:
            raise SensorError(f"{path}, line {line}: time does not advance")
        if scale is not None:
            energy_j.append(value * scale)
            doubt_j.append(0.0)
        else:
            step_s = now_s - unix_s[-1] if unix_s else 0.0
            energy_j.append((energy_j[-1] if energy_j else 0.0) + step_s * (value + last_w) / 2)
            doubt_j.append((doubt_j[-1] if doubt_j else 0.0) + step_s * abs(value - last_w) / 2)
            last_w = value
        unix_s.append(now_s)
    if len(unix_s) < 2:
        raise SensorError(f"{path} holds {len(unix_s)} samples; two are the least that tell energy")
    return Log(unix_s, [e - energy_j[0] for e in energy_j], doubt_j)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()


class BenchMeterSensor(Sensor):
    """A log that a bench meter is still writing, read as it grows, as ``wall/bench``.

    The meter's clock and this machine's must agree; the last sample is taken for as old as its
    timestamp says.
    """

    name = "csv"
    polled_s = 0.5

    def __init__(self, path: Path, component: str = "wall/bench") -> None:
        self.path, self.component = path, component

    def read(self) -> Reading:
        log = read_log(self.path)
        now_s = time.monotonic()
        age_s = max(0.0, time.time() - log.unix_s[-1])
        gaps = [b - a for a, b in zip(log.unix_s, log.unix_s[1:], strict=False)]
        counter = Counter(
            log.energy_j[-1],
            refresh_s=max(gaps[-10:]),
            boundary="wall",
            doubt_j=log.doubt_j[-1],
            limit_w=1e5,
            provenance=Provenance.DERIVED,
        )
        return Reading(max(0.0, now_s - age_s), {self.component: counter})
