"""`IntensitySource`: anything that tells the carbon intensity of electricity; and the yearly table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Protocol

from negawatt.carbon.amount import GRAMS, Factor
from negawatt.carbon.steps import Step
from negawatt.errors import NegawattError, UsageError

GRAMS_PER_KWH = f"{GRAMS}/kWh"
YEARLY_BAND = (0.6, 1.6)
"""What a yearly average may be off by. Two public tables for the same year (Our World in Data and
Electricity Maps, 2023, 197 countries; one counts what is generated, the other what is consumed, with
different factors for fuels) differ by ratios that lie within this band for nine countries in ten."""


class IntensitySource(Protocol):
    """Tells what a kilowatt-hour of a grid emitted while it was used."""

    def steps(self, start: datetime, end: datetime) -> Sequence[Step]:
        """Intensities that cover the time between two moments, as far as they are known.

        Rates are in ``gCO2e/kWh``, or, for marginal ones, ``gCO2e (marginal)/kWh``.

        Raises:
            NegawattError: the source cannot be read, or does not know this zone or time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Country:
    """A row of the built-in table.

    Attributes:
        alpha_3, alpha_2: the country's codes by ISO 3166-1.
        name: in English.
        year: that the figure is the average of.
        g_per_kwh: grams of CO₂ equivalent per kWh generated, over the life cycle.
    """

    alpha_3: str
    alpha_2: str
    name: str
    year: int
    g_per_kwh: float

    @property
    def intensity(self) -> Factor:
        low, high = (self.g_per_kwh * end for end in YEARLY_BAND)
        source = f"yearly average of {self.name}, {self.year}, Our World in Data (CC BY 4.0)"
        return Factor.estimated(self.g_per_kwh, low, high, GRAMS_PER_KWH, source)


@cache
def countries() -> tuple[Country, ...]:
    """The built-in table, by three-letter code."""
    text = resources.files("negawatt.carbon").joinpath("intensities.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Country(row["alpha_3"], row["alpha_2"], row["name"], int(row["year"]), float(row["g_per_kwh"]))
        for row in rows
    )


def yearly(country: str) -> Factor:
    """Average intensity of a country's electricity in the newest year that the built-in table has.

    It answers for a year of even use. The intensity of an hour may be several times higher or lower:
    for when to run something, use a source that knows the hours.

    Args:
        country: code of two or three letters, or English name.

    Raises:
        UsageError: the table has no such country.
    """
    wanted = country.strip().casefold()
    for row in countries():
        if wanted in (row.alpha_3.casefold(), row.alpha_2.casefold(), row.name.casefold()):
            return row.intensity
    near = [f"{row.name} ({row.alpha_2})" for row in countries() if wanted and wanted in row.name.casefold()]
    hint = f"did you mean {', '.join(near[:5])}?" if near else "give a code such as DE or DEU"
    raise UsageError(f"no yearly intensity is known for {country!r}; {hint}")


@dataclass(frozen=True)
class CsvIntensity:
    """Intensities from a file: columns ``start``, ``g_per_kwh``, and if wanted ``end``, ``low``, ``high``.

    Times are ISO 8601 with an offset or ``Z``. Without ``end`` a row holds until the next begins, and
    the last as long as the one before it. Without ``low`` and ``high`` the figure is taken as given.
    """

    path: Path

    def steps(self, start: datetime, end: datetime) -> list[Step]:
        """The rows that overlap the window.

        Raises:
            NegawattError: the file cannot be read or breaks the format; names the line.
        """
        return [step for step in self._all() if step.end > start and step.start <= end]

    def _all(self) -> list[Step]:
        try:
            lines = self.path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise NegawattError(f"cannot read {self.path}: {exc}") from exc
        reader = csv.DictReader(lines)
        missing = {"start", "g_per_kwh"} - set(reader.fieldnames or ())
        if missing:
            raise NegawattError(
                f"{self.path}: expected a first line naming the columns start and g_per_kwh; "
                f"{' and '.join(sorted(missing))} is not there"
            )
        rows = [(reader.line_num, row) for row in reader]
        starts = [self._time(line, row["start"]) for line, row in rows]
        for earlier, later, (line, _) in zip(starts, starts[1:], rows[1:], strict=False):
            if later <= earlier:
                raise NegawattError(f"{self.path}, line {line}: expected a later time than the line before")
        if len(rows) == 1 and not rows[0][1].get("end"):
            raise NegawattError(f"{self.path}: a single row needs an end")
        found = []
        for index, (line, row) in enumerate(rows):
            if row.get("end"):
                end = self._time(line, row["end"])
            elif index + 1 < len(rows):
                end = starts[index + 1]
            else:
                end = starts[index] + (starts[index] - starts[index - 1])
            found.append(self._step(line, row, starts[index], end))
        return found

    def _step(self, line: int, row: dict[str, str], start: datetime, end: datetime) -> Step:
        try:
            value = float(row["g_per_kwh"])
            low, high = float(row.get("low") or value), float(row.get("high") or value)
            rate = Factor.estimated(value, low, high, GRAMS_PER_KWH, f"{self.path.name}, hour by hour")
            return Step(start, end, rate)
        except (ValueError, TypeError) as exc:
            raise NegawattError(f"{self.path}, line {line}: {exc}") from exc

    def _time(self, line: int, text: str) -> datetime:
        try:
            moment = datetime.fromisoformat(text)
        except (ValueError, TypeError) as exc:
            raise NegawattError(
                f"{self.path}, line {line}: expected a time such as 2026-03-01T14:00Z, not {text!r}"
            ) from exc
        if moment.tzinfo is None:
            raise NegawattError(f"{self.path}, line {line}: {text} has no time zone; add Z or an offset")
        return moment
