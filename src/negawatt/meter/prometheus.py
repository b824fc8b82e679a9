"""Any Prometheus query whose answer is watts or joules, by the HTTP interface ``/api/v1/query``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import quote

from negawatt.errors import SensorError
from negawatt.meter.fetch import Server
from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import Counter, Reading, Sensor

_LIMIT_W = 1e6
_COMPONENT = "wall/prometheus"


def query(server: Server, expression: str) -> float:
    """The sum over all series that an instant query returns.

    Raises:
        SensorError: the query is wrong, returns nothing, or something that is no number.
    """
    answer = server.get(f"/api/v1/query?query={quote(expression)}")
    try:
        if answer["status"] != "success":
            raise SensorError(f"{server.url}: {answer.get('error', 'the query failed')}")
        data = answer["data"]
        samples = [data["result"]] if data["resultType"] == "scalar" else [s["value"] for s in data["result"]]
        values = [float(value) for _, value in samples]
    except (KeyError, TypeError, ValueError) as exc:
        raise SensorError(f"{server.url}: this is not how Prometheus answers: {str(answer)[:60]}") from exc
    total = sum(values)
    if not values or not abs(total) < float("inf"):
        raise SensorError(f"{server.url}: the query {expression!r} returns no number now")
    return total


class _Queried:
    """What both kinds share.

    Args:
        server: where Prometheus answers.
        expression: the query; all its series are added up.
        refresh_s: how often the server scrapes what the query reads.
    """

    polled_s: float | None = 1.0

    def __init__(self, server: Server, expression: str, *, refresh_s: float = 15.0) -> None:
        self.server, self.expression, self.refresh_s = server, expression, refresh_s


class PrometheusPowerSource(_Queried, PowerSource):
    """A query that returns watts."""

    name = "prometheus power"

    def read_power(self) -> Mapping[str, Power]:
        watts = query(self.server, self.expression)
        return {_COMPONENT: Power(watts, 0.0, self.refresh_s, "wall", limit_w=_LIMIT_W)}


class PrometheusEnergySensor(_Queried, Sensor):
    """A query that returns a growing number of joules."""

    name = "prometheus energy"

    def read(self) -> Reading:
        begun_s = time.monotonic()
        joules = query(self.server, self.expression)
        counter = Counter(
            joules,
            refresh_s=self.refresh_s,
            boundary="wall",
            limit_w=_LIMIT_W,
            resolution_j=1e-9 * joules,
        )
        return Reading((begun_s + time.monotonic()) / 2, {_COMPONENT: counter})
