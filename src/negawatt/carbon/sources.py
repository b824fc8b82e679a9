"""Sources of intensity by a word on the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from negawatt.carbon.amount import Factor
from negawatt.carbon.intensity import CsvIntensity, IntensitySource, yearly
from negawatt.carbon.services import BritishIntensity, ElectricityMaps, WattTime
from negawatt.carbon.steps import over
from negawatt.errors import UsageError

KINDS = "DE (a country), csv:FILE, british, electricity-maps:ZONE, watttime:REGION"


def intensity_from_text(
    text: str,
    start: datetime | None,
    end: datetime | None,
    environment: Mapping[str, str] = os.environ,
) -> Factor:
    """The intensity that a source gives for a window.

    A country's code or name means the built-in yearly table and needs no window. ``british``,
    ``electricity-maps:`` and ``watttime:`` ask a service over the network.

    Args:
        text: one of `KINDS`.
        start, end: when the energy was used, with time zones.
        environment: holds the keys: ``ELECTRICITY_MAPS_API_KEY``; ``WATTTIME_USER`` and
            ``WATTTIME_PASSWORD``.

    Raises:
        UsageError: an unknown source or country, no window, or no key.
        NegawattError: the source cannot be read, or does not cover the window.
    """
    kind, _, where = text.partition(":")
    if not where and kind != "british":
        return yearly(text)
    source = _source(kind, where, environment)
    if start is None or end is None:
        raise UsageError(f"{text} tells intensities by time; say when the energy was used (--start)")
    return over(source.steps(start, end), start, end)


def _source(kind: str, where: str, environment: Mapping[str, str]) -> IntensitySource:
    def key(name: str) -> str:
        if not environment.get(name):
            raise UsageError(f"{kind} needs {name} in the environment")
        return environment[name]

    if kind == "csv":
        return CsvIntensity(Path(where))
    if kind == "british":
        return BritishIntensity()
    if kind == "electricity-maps":
        return ElectricityMaps(where, key("ELECTRICITY_MAPS_API_KEY"))
    if kind == "watttime":
        return WattTime(where, key("WATTTIME_USER"), key("WATTTIME_PASSWORD"))
    raise UsageError(f"expected a source of intensity such as {KINDS}; not {kind!r}")
