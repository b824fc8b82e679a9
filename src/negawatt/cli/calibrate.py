"""``negawatt calibrate``: measure once what later measurements need to know about this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negawatt.cli.common import emit, examples, json_option, progress_bar
from negawatt.cli.measure import sensor_option, station_with
from negawatt.errors import NegawattError, UsageError

if TYPE_CHECKING:
    from negawatt.meter.curve import PowerCurve


@click.command(
    epilog=examples(
        "negawatt calibrate",
        "negawatt calibrate --sensor shelly:http://192.168.1.5",
        "negawatt calibrate --idle --seconds 120",
        "negawatt calibrate --export host.json",
        "negawatt calibrate --import host.json",
    )
)
@json_option
@sensor_option
@click.option("--idle", is_flag=True, help="Only measure what the machine draws when it does nothing.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    help="For how long; by default 30 at rest, and what the sensor needs for load steps.",
)
@click.option(
    "--export",
    "export",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the curve that is kept here to a file; measure nothing.",
)
@click.option(
    "--import",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Take over a curve that was exported on a machine with this processor; measure nothing.",
)
def command(
    as_json: bool,
    sensors: tuple[str, ...],
    idle: bool,
    seconds: float | None,
    export: Path | None,
    source: Path | None,
) -> None:
    """Find out how this machine's power follows its load, for estimates where no counter tells.

    Load steps of several kinds of work keep the machine busy for about a minute, and the watts that
    a trustworthy sensor shows meanwhile become its power curve. The machine must do nothing else.
    The curve is kept under NEGAWATT_HOME and used from then on. Where there is no such sensor, as
    in a virtual machine, calibrate on the host, --export there and --import here.
    """
    if sum((idle, export is not None, source is not None)) > 1:
        raise UsageError("--idle, --export and --import exclude one another")
    if idle:
        _idle(as_json, sensors, 30.0 if seconds is None else seconds)
    elif export is not None or source is not None:
        if sensors or seconds is not None:
            raise UsageError("--export and --import measure nothing, so --sensor and --seconds have no use")
        _move(as_json, export, source)
    else:
        _curve(as_json, sensors, seconds)


def _idle(as_json: bool, sensors: Sequence[str], seconds: float) -> None:
    from negawatt.meter.calibrate import measure_idle
    from negawatt.meter.idle import save_idle

    with progress_bar("At rest") as report:
        result = measure_idle(
            station_with(sensors), seconds, lambda done_s: report(done_s, seconds, f"{done_s:.0f} s")
        )
    path = save_idle(result)
    if as_json:
        emit({**result.to_json(), "file": str(path)})
        return
    for component, energy in result.power.items():
        assert energy.value_j is not None
        click.echo(f"{component}: {energy.value_j:.3g} W ({energy.low_j:.3g}–{energy.high_j:.3g})")
    click.echo(f"{result.busy:.1%} busy over {result.duration_s:.0f} s; kept in {path}", err=True)


def _curve(as_json: bool, texts: Sequence[str], seconds: float | None) -> None:
    from negawatt.meter.calibrate import measure_curve
    from negawatt.meter.calibrated import save_curve
    from negawatt.meter.sources import from_text
    from negawatt.meter.station import this_station

    named = [from_text(text) for text in texts]
    with progress_bar("Load steps") as report:
        curve = measure_curve(this_station(named), seconds, named=named, progress=report)
    _show(as_json, curve, save_curve(curve))


def _move(as_json: bool, export: Path | None, source: Path | None) -> None:
    from negawatt.home import write_json
    from negawatt.meter.calibrated import import_curve, load_curve, read_curve

    if source is not None:
        path = import_curve(source)
        _show(as_json, read_curve(path), path)
        return
    assert export is not None
    curve = load_curve()
    if curve is None:
        raise NegawattError("no power curve is kept here to export; negawatt calibrate makes one")
    write_json(export, curve.to_json())
    _show(as_json, curve, export)


def _show(as_json: bool, curve: PowerCurve, path: Path) -> None:
    if as_json:
        emit({**curve.to_json(), "file": str(path)})
        return
    click.echo(f"{', '.join(curve.source)}, {curve.boundary} joules, {curve.threads} hardware threads")
    for load, watts in curve.knots:
        click.echo(f"{load:5.0%} busy: {watts:.3g} W ±{curve.margin_w(load):.2g}")
    click.echo(
        f"straight lines in between; kinds of work differ by {curve.spread:.0%} of dynamic power, "
        f"noise {curve.noise_w:.2g} W; kept in {path}",
        err=True,
    )
