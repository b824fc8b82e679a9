"""``negawatt measure``: what any command spends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.exports import export_options, exporters
from negawatt.energy import Provenance
from negawatt.errors import NegawattError

if TYPE_CHECKING:
    from negawatt.export import Exporter
    from negawatt.meter import Measurement, Station
    from negawatt.meter.command import Follower


def sensor_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--sensor KIND:WHERE``, as often as wanted: sensors that have to be told where they are."""
    return click.option(
        "--sensor",
        "sensors",
        multiple=True,
        metavar="KIND:WHERE",
        help="Also read this one: shelly:URL, tasmota:URL, redfish:URL, nut:UPS@HOST, "
        "prometheus:URL?query=QUERY, csv:FILE, papi:powercap, papi:nvml. May be given more than once.",
    )(function)


def station_with(texts: Sequence[str]) -> Station:
    """This machine's sensors and those that the texts describe."""
    from negawatt.meter.sources import from_text
    from negawatt.meter.station import this_station

    return this_station([from_text(text) for text in texts])


@click.command(
    context_settings={"allow_interspersed_args": False},  # from the first word on, all belongs to COMMAND
    epilog=examples(
        "negawatt measure -- python train.py --epochs 3",
        "negawatt measure --output spent.json -- make -j4",
        "negawatt measure --csv energy.csv --prometheus-port 9166 -- ./job",
        "negawatt measure --json -- ./job 2>/dev/null | jq .energy.value_j",
    ),
)
@json_option
@sensor_option
@export_options
@click.option("--quiet", is_flag=True, help="Show no live line, and no summary at the end.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the JSON document to this file.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    command: tuple[str, ...],
    as_json: bool,
    sensors: tuple[str, ...],
    quiet: bool,
    output: Path | None,
    **where: Any,
) -> int:
    """Run COMMAND and tell what it and its children spent.

    Its input, output and exit code pass through (128 + N when signal N ends it); the summary goes
    to standard error. With --json the document is all there is on standard output: COMMAND's own
    output then goes to standard error. Use --output to keep it where it is. Once COMMAND has run
    its exit code stands, whatever becomes of the figures.
    """
    from negawatt.home import written_beside
    from negawatt.meter.command import measure_command

    if output is not None and (output.is_file() or not output.exists()):
        trial = output.with_name(f".{output.name}.trial")  # better told now than after hours
        with written_beside(trial) as temporary:
            temporary.touch()
        trial.unlink()
    code, measurement = measure_command(
        command,
        output_to_stderr=as_json,
        station=partial(station_with, sensors),
        followers=_followers(exporters(**where), quiet),
    )
    document = {**measurement.to_json(), "exit_code": code, "command": list(command)}
    _tell(document, as_json, "" if as_json or quiet else _summary(measurement), output)
    return code


def _followers(targets: Sequence[Exporter], quiet: bool) -> list[Follower]:
    """Who looks on while the command runs."""
    found: list[Follower] = []
    if not quiet and sys.stderr.isatty():
        from negawatt.cli.live import LiveLine

        found.append(LiveLine())
    if targets:
        from negawatt.export.following import Following

        found.append(Following(targets))
    return found


def _tell(document: dict[str, Any], as_json: bool, summary: str, output: Path | None) -> None:
    """Print and write the figures; a full disk or a reader that left is told and fails nothing."""
    from negawatt.home import write_json

    lost = ""
    try:
        if output is not None:
            write_json(output, document)
    except NegawattError as exc:
        lost = f"negawatt: {exc}"
    with _surviving(sys.stdout):
        if as_json:
            emit(document)
    with _surviving(sys.stderr):
        for text in filter(None, (summary, lost)):
            click.echo(text, err=True)


@contextmanager
def _surviving(stream: TextIO) -> Iterator[None]:
    """Let go of what a stream cannot take, so that Python does not fail over it at its end either."""
    try:
        yield
        stream.flush()
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if stream is sys.stdout and not isinstance(exc, BrokenPipeError):
            click.echo(f"negawatt: standard output takes no more: {exc.strerror}", err=True)


def _summary(measurement: Measurement) -> str:
    seconds = f"{measurement.duration_s:.2f} s, {measurement.cpu_s:.2f} CPU-seconds"
    lines = [f"{measurement.energy} in {seconds}"]
    if measurement.energy.provenance is Provenance.ESTIMATED:
        lines.append("estimated from CPU time: no counter here can be trusted (negawatt doctor tells why)")
        if measurement.boundary != "chip":
            lines.append(f"by the calibrated power curve, which gives joules of the {measurement.boundary}")
    elif len(measurement.components) > 1:
        lines += [f"{name}: {energy}" for name, energy in measurement.components.items()]
    outer = {n: e for n, e in measurement.machine.items() if n.startswith(("host/", "wall/"))}
    lines += [f"{name}, the whole machine meanwhile: {energy}" for name, energy in outer.items()]
    lines += _stage_lines(measurement)
    lines += measurement.warnings
    return "negawatt: " + "\n  ".join(lines)


def _stage_lines(measurement: Measurement) -> list[str]:
    """Every stage, indented by how deep it is, and what was spent outside of all of them."""
    depth: list[int] = []
    lines = []
    for stage in measurement.stages:
        depth.append(0 if stage.parent is None else depth[stage.parent] + 1)
        lines.append(f"{'  ' * depth[-1]}{stage.name}: {stage.energy} in {stage.duration_s:.2f} s")
    if lines:
        lines.append(f"outside of stages: {measurement.outside_stages}")
    return lines
