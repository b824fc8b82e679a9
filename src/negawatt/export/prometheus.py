"""A Prometheus endpoint: joules as counters, their bounds beside them, and nothing for what is missing.

Follows Prometheus's conventions for names: base units, ``_total`` for counters. Every figure says
where it comes from in the label ``provenance``. A component that gives no reading has no series
until it does again, and is never 0.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from negawatt.errors import installed_version, require
from negawatt.export.exporter import Exporter, ExportError
from negawatt.export.rising import Rising
from negawatt.monitor.sample import Component, Line, Sample
from negawatt.monitor.split import Joules

_BOUNDS = (("", "best figure"), ("low_", "lower bound"), ("high_", "upper bound"))
_COMPONENT = ("component", "boundary", "part_of", "provenance")
_PROCESS = ("pid", "command", "cgroup", "container", "provenance")
_GROUP = ("cgroup", "kind", "name", "container", "pod", "provenance")


class PrometheusExporter(Exporter):
    """Serves the last sample at ``http://host:port/metrics``.

    Args:
        port: to listen on; 0 for any that is free.
        host: to listen on; by default this machine alone is answered.

    Raises:
        MissingDependency: prometheus-client is not installed.
    """

    name = "Prometheus endpoint"
    instant = True

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        installed_version("prometheus-client", extra="prometheus")
        self.port, self.host = port, host
        self._sample: Sample | None = None
        self._rising = Rising()
        self._server: Any = None

    def open(self) -> None:
        client = require("prometheus_client", extra="prometheus")
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self))
        try:
            self._server, _ = client.start_http_server(self.port, self.host, registry)
        except OSError as exc:
            taken = "it is in use by another program" if exc.errno == errno.EADDRINUSE else exc.strerror
            raise ExportError(
                f"port {self.port} of {self.host} cannot be listened on: {taken or exc}"
            ) from exc
        self.port = self._server.server_port

    def export(self, sample: Sample) -> None:
        self._sample = sample

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def families(self) -> Iterator[Any]:
        """The metric families of the last sample; before the first one there are none."""
        sample = self._sample
        if sample is None:
            return
        core = require("prometheus_client.core", extra="prometheus")
        whole = str(sample.provenance)
        counted = [c for c in sample.components if not c.failing]
        components = [(_component_labels(c), c.total) for c in counted]
        prefix = "command_" if sample.subject == "command" else ""
        words = f"by part of the {sample.subject}" if not prefix else "charged to the command, by component"
        yield from self._counters(core, f"{prefix}component", words, _COMPONENT, components)
        watts = core.GaugeMetricFamily(
            f"negawatt_{prefix}component_watts",
            f"Mean power over the last interval, {words}.",
            labels=_COMPONENT,
        )
        for component in counted:
            if component.power_w is not None:
                watts.add_metric(_component_labels(component), component.power_w)
        yield watts
        if sample.subject == "machine":
            yield from self._divided(core, sample, whole)
        yield from _facts(core, sample)
        self._rising.turn()

    def _divided(self, core: Any, sample: Sample, whole: str) -> Iterator[Any]:
        """What the machine spent, divided among processes and among groups."""
        singles = [
            ("idle", "that would have flowed anyway", sample.idle),
            ("unattributed", "that no visible process accounts for", sample.unattributed),
            ("ended_processes", "charged to processes that have ended", sample.ended),
            ("ended_groups", "charged to control groups that are gone", sample.ended_groups),
        ]
        for name, words, line in singles:
            if line is not None:
                yield from self._counters(core, name, words, ("provenance",), [((whole,), line.total)])
        processes = [(_process_labels(line, whole), line.total) for line in sample.processes]
        yield from self._counters(core, "process", "charged to a running process", _PROCESS, processes)
        groups = [(_group_labels(line, whole), line.total) for line in sample.groups]
        words = "charged to a control group, such as a container"
        yield from self._counters(core, "group", words, _GROUP, groups)

    def _counters(
        self,
        core: Any,
        name: str,
        words: str,
        labels: Sequence[str],
        rows: Sequence[tuple[Sequence[str], Joules]],
    ) -> Iterator[Any]:
        """A counter of joules with its two bounds."""
        for place, (bound, what) in enumerate(_BOUNDS):
            title = f"negawatt_{name}_{bound}joules"
            family = core.CounterMetricFamily(title, f"Joules {words}: {what}.", labels=labels)
            for values, joules in rows:
                family.add_metric(values, self._rising((title, *values), joules[place]))
            yield family


def _facts(core: Any, sample: Sample) -> Iterator[Any]:
    elapsed = core.CounterMetricFamily("negawatt_monitored_seconds", "Seconds since monitoring began.")
    elapsed.add_metric([], sample.elapsed_s)
    yield elapsed
    interval = core.GaugeMetricFamily("negawatt_interval_seconds", "Length of the last interval.")
    interval.add_metric([], sample.duration_s)
    yield interval
    if sample.subject == "command":
        return
    idle = core.GaugeMetricFamily(
        "negawatt_idle_known",
        "1 when idle energy is a line of its own, 0 while those who run carry that of some component.",
    )
    idle.add_metric([], 0.0 if sample.idle_reason else 1.0)
    yield idle


class _Collector:
    def __init__(self, exporter: PrometheusExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()  # the server answers each scrape in a thread of its own

    def collect(self) -> list[Any]:
        with self._lock:
            return list(self._exporter.families())


def _component_labels(component: Component) -> tuple[str, ...]:
    return component.name, component.boundary, component.part_of or "", str(component.provenance)


def _process_labels(line: Line, provenance: str) -> tuple[str, ...]:
    group = line.group
    return (
        str(line.pid),
        line.name,
        group.path if group else "",
        group.container if group else "",
        provenance,
    )


def _group_labels(line: Line, provenance: str) -> tuple[str, ...]:
    assert line.group is not None
    group = line.group
    return group.path, group.kind, group.name, group.container, group.pod, provenance
