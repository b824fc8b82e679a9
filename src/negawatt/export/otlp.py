"""OpenTelemetry metrics over OTLP/HTTP, with the hardware conventions.

``hw.energy`` and ``hw.power`` for what is counted at the chips, ``hw.host.energy`` and
``hw.host.power`` for the meters that contain them, as the conventions demand so that nobody adds
both. They know nothing of processes or intervals: those go under ``negawatt.*``.

The data are built of the SDK's own records rather than by its instruments, which remember every
process that ever ran.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from negawatt import __version__
from negawatt.errors import UsageError, installed_version, require
from negawatt.export.exporter import Exporter, ExportError
from negawatt.export.rising import Rising
from negawatt.monitor.sample import Component, Line, Sample

PUSH_S = 5.0
"""Samples are pushed no more often than this; counters lose nothing by it."""

TIMEOUT_S = 1.5
_TYPES = {"cpu": "cpu", "dram": "memory", "gpu": "gpu", "battery": "battery"}

Point = tuple[float, Mapping[str, str | int]]
"""A value and its attributes."""


class OtlpExporter(Exporter):
    """Pushes to a collector.

    Args:
        url: of the collector, ``http://localhost:4318``; without a path, ``/v1/metrics`` is added.
            Headers that the environment names (``OTEL_EXPORTER_OTLP_HEADERS``) are sent along.

    Raises:
        UsageError: that is no such address.
        MissingDependency: the OpenTelemetry SDK is not installed.
    """

    name = "OTLP"

    def __init__(self, url: str, push_s: float = PUSH_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"expected an address such as http://localhost:4318, not {url!r}")
        installed_version("opentelemetry-exporter-otlp-proto-http", extra="otlp")
        path = "/v1/metrics" if parts.path in ("", "/") else parts.path
        self.url = parts._replace(path=path).geturl()
        self._push_s = push_s
        self._pushed_s = -math.inf
        self._kept: Sample | None = None
        self._rising = Rising()
        self._log = _LastMessage()
        self._wire: Any = None

    def open(self) -> None:
        exporter = require("opentelemetry.exporter.otlp.proto.http.metric_exporter", extra="otlp")
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self._log)  # its words become ours, and are said once
        logger.propagate = False
        self._wire = exporter.OTLPMetricExporter(endpoint=self.url, timeout=TIMEOUT_S)

    def export(self, sample: Sample) -> None:
        self._kept = sample
        if time.monotonic() - self._pushed_s >= self._push_s:
            self._push()

    def close(self) -> None:
        try:
            if self._kept is not None:
                self._push()
        finally:
            self._wire.shutdown()
            logging.getLogger("opentelemetry").removeHandler(self._log)

    def _push(self) -> None:
        sample, self._kept = self._kept, None
        assert sample is not None
        self._pushed_s = time.monotonic()
        outcome = self._wire.export(metrics_data(sample, self._rising))
        if outcome.name != "SUCCESS":
            raise ExportError(f"{self.url} did not take the metrics: {self._log.text or 'no reason given'}")


class _LastMessage(logging.Handler):
    """Remembers the last warning of a library."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:200]


def metrics_data(sample: Sample, rising: Rising) -> Any:
    """A sample as the SDK's ``MetricsData``."""
    sdk = require("opentelemetry.sdk.metrics.export", extra="otlp")
    resources = require("opentelemetry.sdk.resources", extra="otlp")
    scope = require("opentelemetry.sdk.util.instrumentation", extra="otlp")
    now_ns = int(sample.at_s * 1e9)
    begun_ns = int((sample.at_s - sample.elapsed_s) * 1e9)

    def points(name: str, found: list[Point], counter: bool) -> list[Any]:
        made = []
        for value, attributes in found:
            key = (name, *sorted(attributes.items()))
            held = rising(key, value) if counter else value
            made.append(sdk.NumberDataPoint(dict(attributes), begun_ns, now_ns, held))
        return made

    metrics = []
    for name, words, counter, found in _metrics(sample):
        if not found:
            continue
        numbers = points(name, found, counter)
        data = (
            sdk.Sum(numbers, sdk.AggregationTemporality.CUMULATIVE, is_monotonic=True)
            if counter
            else sdk.Gauge(numbers)
        )
        metrics.append(sdk.Metric(name, words, "J" if counter else "W", data))
    rising.turn()
    resource = resources.Resource(
        {"service.name": "negawatt", "service.version": __version__, "host.name": socket.gethostname()}
    )
    scoped = sdk.ScopeMetrics(scope.InstrumentationScope("negawatt", __version__), metrics, "")
    return sdk.MetricsData([sdk.ResourceMetrics(resource, [scoped], "")])


def _metrics(sample: Sample) -> Iterator[tuple[str, str, bool, list[Point]]]:
    """Name, description, whether it is a counter, and the points of every metric."""
    if sample.subject == "command":
        # A share of a component is no component: the hardware conventions are not for it.
        charged: list[Point] = [(c.total.value_j, _hardware(c)) for c in sample.components if not c.failing]
        yield "negawatt.command.energy", "Energy charged to the command.", True, charged
        return
    chips = [c for c in sample.components if c.boundary == "chip"]
    hosts = [c for c in sample.components if c.boundary != "chip"]
    for prefix, words, found in (("hw", "the component", chips), ("hw.host", "the physical host", hosts)):
        counted = [c for c in found if not c.failing]
        yield (
            f"{prefix}.energy",
            f"Energy consumed by {words}.",
            True,
            [(c.total.value_j, _hardware(c)) for c in counted],
        )
        yield (
            f"{prefix}.power",
            f"Mean power of {words} over the last interval.",
            False,
            [(c.power_w, _hardware(c)) for c in counted if c.power_w is not None],
        )
        for place, bound in ((1, "low"), (2, "high")):
            yield (
                f"negawatt.{prefix}.energy.{bound}",
                f"{'Lower' if place == 1 else 'Upper'} bound of {prefix}.energy.",
                True,
                [(c.total[place], _hardware(c)) for c in counted],
            )
    whole: dict[str, str | int] = {"negawatt.provenance": str(sample.provenance)}
    for name, words, line in (
        ("idle", "that would have flowed anyway", sample.idle),
        ("unattributed", "that no visible process accounts for", sample.unattributed),
        ("ended_processes", "charged to processes that have ended", sample.ended),
        ("ended_groups", "charged to control groups that are gone", sample.ended_groups),
    ):
        found_points: list[Point] = [(line.total.value_j, whole)] if line else []
        yield f"negawatt.{name}.energy", f"Energy {words}.", True, found_points
    yield (
        "negawatt.process.energy",
        "Energy charged to a running process.",
        True,
        [(line.total.value_j, {**whole, **_process(line)}) for line in sample.processes],
    )
    yield (
        "negawatt.group.energy",
        "Energy charged to a control group, such as a container.",
        True,
        [(line.total.value_j, {**whole, **_group(line)}) for line in sample.groups],
    )


def _hardware(component: Component) -> dict[str, str | int]:
    kind = component.name.partition("/")[0]
    found: dict[str, str | int] = {
        "hw.id": component.name,
        "hw.name": component.name,
        "hw.type": _TYPES.get(kind, kind if component.boundary == "chip" else "power_supply"),
        "negawatt.boundary": component.boundary,
        "negawatt.provenance": str(component.provenance),
    }
    if component.part_of:
        found["hw.parent"] = component.part_of
    return found


def _process(line: Line) -> dict[str, str | int]:
    return {"process.pid": line.pid, "process.executable.name": line.name, **_group(line)}


def _group(line: Line) -> dict[str, str | int]:
    if line.group is None:
        return {}
    named = {
        "process.linux.cgroup": line.group.path,
        "container.id": line.group.container,
        "container.runtime.name": line.group.kind if line.group.container else "",
        "k8s.pod.uid": line.group.pod,
    }
    return {key: value for key, value in named.items() if value}
