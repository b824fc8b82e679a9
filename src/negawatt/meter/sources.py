"""Sensors that need to be told where they are, by one line of text each.

::

    shelly:http://192.168.1.5            a Shelly plug
    tasmota:http://192.168.1.6           a plug with Tasmota's firmware
    redfish:https://user:pw@bmc.lan      a server's management controller
    nut:ups@localhost:3493               a UPS, through Network UPS Tools
    prometheus:http://host:9090?query=…  watts by any query; with &unit=J a counter of joules
    csv:log.csv                          a bench meter's log
    papi:powercap, papi:nvml             a component of libpapi
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from negawatt.errors import UsageError
from negawatt.meter.benchmeter import BenchMeterSensor
from negawatt.meter.fetch import Server
from negawatt.meter.papi import PapiNvmlSource, PapiPowercapSensor
from negawatt.meter.plugs import ShellySource, TasmotaSource
from negawatt.meter.power import Integrated
from negawatt.meter.prometheus import PrometheusEnergySensor, PrometheusPowerSource
from negawatt.meter.redfish import RedfishSource
from negawatt.meter.sensor import Sensor
from negawatt.meter.ups import PORT, UpsSource


def from_text(text: str) -> Sensor:
    """The sensor that a line describes; nothing is contacted yet.

    Raises:
        UsageError: the kind is unknown, or the rest is not as expected.
    """
    kind, separator, rest = text.partition(":")
    if kind not in _KINDS or not separator or not rest:
        shown = re.sub(r"//[^/]*@", "//…@", text)  # a password has no place in a message
        raise UsageError(f"expected KIND:WHERE with a kind of {', '.join(_KINDS)}, not {shown!r}")
    return _KINDS[kind](rest)


def _server(url: str) -> Server:
    """A server from an address that may carry user and password."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    place = f"[{host}]" if ":" in host else host
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError as exc:
        raise UsageError(f"the port of {place} is not a number up to 65535") from exc
    return Server(f"{parts.scheme}://{place}{port}{parts.path}", parts.username or "", parts.password or "")


def _nut(rest: str) -> Sensor:
    ups, _, where = rest.rpartition("@")
    host, _, port = where.partition(":")
    if not ups or not host or (port and not port.isdigit()):
        raise UsageError(f"expected nut:UPS@HOST or nut:UPS@HOST:PORT, not nut:{rest}")
    return Integrated(UpsSource(host, ups, int(port or PORT)))


def _prometheus(rest: str) -> Sensor:
    options = {name: values[-1] for name, values in parse_qs(urlsplit(rest).query).items()}
    unknown = options.keys() - {"query", "unit"}
    if "query" not in options or unknown or options.get("unit", "W") not in ("W", "J"):
        raise UsageError(
            "expected prometheus:http://HOST:PORT?query=QUERY&unit=W (or J), "
            f"not query={options.get('query')}&unit={options.get('unit')}"
        )
    if options.get("unit") == "J":
        return PrometheusEnergySensor(_server(rest), options["query"])
    return Integrated(PrometheusPowerSource(_server(rest), options["query"]))


def _papi(rest: str) -> Sensor:
    if rest == "powercap":
        return PapiPowercapSensor()
    if rest == "nvml":
        return Integrated(PapiNvmlSource())
    raise UsageError(f"expected papi:powercap or papi:nvml, not papi:{rest}")


_KINDS: dict[str, Callable[[str], Sensor]] = {
    "shelly": lambda rest: Integrated(ShellySource(_server(rest))),
    "tasmota": lambda rest: Integrated(TasmotaSource(_server(rest))),
    "redfish": lambda rest: Integrated(RedfishSource(_server(rest))),
    "nut": _nut,
    "prometheus": _prometheus,
    "csv": lambda rest: BenchMeterSensor(Path(rest)),
    "papi": _papi,
}
