"""Services that tell intensities hour by hour: Great Britain's, Electricity Maps, WattTime.

Nothing here is asked unless a caller makes one of these and calls `steps`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from negawatt.carbon.amount import MARGINAL_GRAMS, Factor
from negawatt.carbon.intensity import GRAMS_PER_KWH
from negawatt.carbon.steps import Step
from negawatt.carbon.web import Answer, Service
from negawatt.errors import DownloadError, UsageError

_G_PER_KWH_OF_LB_PER_MWH = 0.45359237
"""A pound is 453.59237 g, a megawatt-hour 1,000 kWh."""


@dataclass(frozen=True)
class BritishIntensity:
    """The Carbon Intensity API of Great Britain's system operator; no key.

    Half-hours of the whole of Great Britain: the figure estimated afterwards, or the forecast until
    there is one. It counts generation, imports and losses in transmission. The service publishes no
    uncertainty; the interval spans forecast and estimate.
    """

    service: Service = field(default_factory=lambda: Service("https://api.carbonintensity.org.uk"))

    def steps(self, start: datetime, end: datetime) -> Sequence[Step]:
        """
        Raises:
            DownloadError: the service does not answer, or with something else.
        """
        first, last = _hours(start, end)
        answer = self.service.get(f"/intensity/{first:%Y-%m-%dT%H:%MZ}/{last:%Y-%m-%dT%H:%MZ}", {})
        found = []
        for entry in _list(answer, "data"):
            told = _part(entry, "intensity")
            figures = [told[key] for key in ("actual", "forecast") if told.get(key) is not None]
            if not figures:
                continue
            values = [_number(figure, "intensity") for figure in figures]
            source = _source("Carbon Intensity API, Great Britain", answer)
            rate = Factor.estimated(values[0], min(values), max(values), GRAMS_PER_KWH, source)
            found.append(Step(_time(entry, "from"), _time(entry, "to"), rate))
        return found


@dataclass(frozen=True)
class ElectricityMaps:
    """Electricity Maps: hours, by zone, of what is consumed, over the life cycle; needs a key.

    The last 24 hours come from ``history``, which free keys may read, anything older from
    ``past-range``. The service publishes no uncertainty; figures that it estimated itself say so.

    Attributes:
        zone: such as ``DE`` or ``US-CAL-CISO``.
        key: the account's; goes into a header only.
    """

    zone: str
    key: str = field(repr=False)
    service: Service = field(default_factory=lambda: Service("https://api.electricitymaps.com/v3"))

    def steps(self, start: datetime, end: datetime) -> Sequence[Step]:
        """
        Raises:
            DownloadError: the service does not answer, or with something else, or for another zone.
        """
        service = replace(self.service, headers={"auth-token": self.key})
        recent = datetime.now(UTC) - start < timedelta(hours=23)
        if recent:
            answer = service.get("/carbon-intensity/history", {"zone": self.zone})
        else:
            first, last = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in _hours(start, end))
            answer = service.get(
                "/carbon-intensity/past-range", {"zone": self.zone, "start": first, "end": last}
            )
        if (told := _part(answer.document, None).get("zone")) not in (self.zone, None):
            # Without a zone that it knows, the service looks up where the caller is and answers for that.
            raise DownloadError(f"asked for {self.zone}, {self.service.url} answered for {told}")
        found = []
        for entry in _list(answer, "history" if recent else "data"):
            if _part(entry, None).get("carbonIntensity") is None:
                continue
            value = _number(entry["carbonIntensity"], "carbonIntensity")
            begun = _time(entry, "datetime")
            name = f"Electricity Maps, {self.zone}" + (", estimated" if entry.get("isEstimated") else "")
            rate = Factor.estimated(value, value, value, GRAMS_PER_KWH, _source(name, answer))
            found.append(Step(begun, begun + timedelta(hours=1), rate))
        return _within(found, start, end)


@dataclass(frozen=True)
class WattTime:
    """WattTime: marginal operating emissions by region, every five minutes; needs an account.

    Marginal: what one kWh more makes the grid emit. A sensitivity, in a unit of its own that enters no
    inventory. It counts CO₂ alone.

    Attributes:
        region: such as ``CAISO_NORTH``.
        user, password: the account's; a login gives a token for half an hour, kept in memory only.
    """

    region: str
    user: str
    password: str = field(repr=False)
    service: Service = field(default_factory=lambda: Service("https://api.watttime.org"))

    def steps(self, start: datetime, end: datetime) -> Sequence[Step]:
        """
        Raises:
            DownloadError: the service does not answer, or with something else.
        """
        first, last = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in _hours(start, end))
        query = {"region": self.region, "start": first, "end": last, "signal_type": "co2_moer"}
        answer = self.service.get("/v3/historical", query, self._login)
        about = _part(answer.document, "meta")
        if about.get("units") != "lbs_co2_per_mwh":
            raise DownloadError(f"{self.service.url}: expected lbs_co2_per_mwh, not {about.get('units')!r}")
        length = timedelta(seconds=_number(about.get("data_point_period_seconds"), "period"))
        source = _source(f"WattTime, {self.region}, marginal", answer)
        found = []
        for entry in _list(answer, "data"):
            value = _number(_part(entry, None).get("value"), "value") * _G_PER_KWH_OF_LB_PER_MWH
            begun = _time(entry, "point_time")
            rate = Factor.estimated(value, value, value, f"{MARGINAL_GRAMS}/kWh", source)
            found.append(Step(begun, begun + length, rate))
        return _within(found, start, end)

    def _login(self) -> dict[str, str]:
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        answer = self.service.ask("/login", {"Authorization": f"Basic {pair}"})
        token = _part(answer, None).get("token")
        if not isinstance(token, str):
            raise DownloadError(f"{self.service.url}: the login gave no token")
        return {"Authorization": f"Bearer {token}"}


def _hours(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The full hours around a window, so that asking again within the hour finds the cache."""
    if start.tzinfo is None or end.tzinfo is None:
        raise UsageError("the times from when to when the energy was used need time zones")
    hour = timedelta(hours=1)
    first = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    last = end.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return first, last if last == end and last > first else last + hour


def _within(steps: Iterable[Step], start: datetime, end: datetime) -> list[Step]:
    return [step for step in steps if step.end > start and step.start <= end]


def _source(name: str, answer: Answer) -> str:
    note = answer.note()
    return f"{name} ({note})" if note else name


def _part(document: Any, key: str | None) -> dict[str, Any]:
    part = document if key is None else document.get(key) if isinstance(document, dict) else None
    if not isinstance(part, dict):
        raise DownloadError(f"the answer is not as documented: no {key or 'object'} in {str(document)[:80]}")
    return part


def _list(answer: Answer, key: str) -> list[Any]:
    part = _part(answer.document, None).get(key)
    if not isinstance(part, list):
        raise DownloadError(
            f"the answer is not as documented: {key} should be a list and is {str(part)[:80]}"
        )
    return part


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DownloadError(f"the answer is not as documented: {name} should be a number and is {value!r}")
    return float(value)


def _time(entry: Any, key: str) -> datetime:
    text = _part(entry, None).get(key)
    try:
        moment = datetime.fromisoformat(text)  # type: ignore[arg-type]  # what is no text raises too
    except (ValueError, TypeError) as exc:
        raise DownloadError(
            f"the answer is not as documented: {key} should be a time and is {text!r}"
        ) from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
