"""The options that say where samples go, for ``monitor`` and ``measure`` alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from negawatt.export import Exporter

_OPTIONS = (
    click.option(
        "--prometheus-port",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Serve metrics to Prometheus on this port; 0 for any free one.",
    ),
    click.option(
        "--prometheus-host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Listen on this address; the default answers this machine alone.",
    ),
    click.option("--otlp", metavar="URL", help="Push metrics to this OpenTelemetry collector."),
    click.option(
        "--csv",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Append a row for everything that was charged to this file.",
    ),
    click.option(
        "--parquet",
        type=click.Path(path_type=Path),
        help="Add the same rows to this folder of Parquet files.",
    ),
)


def export_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--prometheus-port``, ``--prometheus-host``, ``--otlp``, ``--csv`` and ``--parquet``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def exporters(
    prometheus_port: int | None,
    prometheus_host: str,
    otlp: str | None,
    csv: Path | None,
    parquet: Path | None,
) -> list[Exporter]:
    """What the options ask for; nothing is opened yet.

    Raises:
        UsageError: an address is none.
        MissingDependency: a library for one of them is not installed.
    """
    found: list[Exporter] = []
    if prometheus_port is not None:
        from negawatt.export.prometheus import PrometheusExporter

        found.append(PrometheusExporter(prometheus_port, prometheus_host))
    if otlp is not None:
        from negawatt.export.otlp import OtlpExporter

        found.append(OtlpExporter(otlp))
    if csv is not None:
        from negawatt.export.csv import CsvExporter

        found.append(CsvExporter(csv))
    if parquet is not None:
        from negawatt.export.parquet import ParquetExporter

        found.append(ParquetExporter(parquet))
    return found
