"""``negawatt calibrate``: measure once what later measurements need to know about this machine."""

from __future__ import annotations

import click

from negawatt.cli.common import emit, examples, json_option, progress_bar
from negawatt.cli.measure import sensor_option, station_with
from negawatt.errors import UsageError


@click.command(
    epilog=examples(
        "negawatt calibrate --idle",
        "negawatt calibrate --idle --seconds 120 --sensor shelly:http://192.168.1.5",
    )
)
@json_option
@sensor_option
@click.option("--idle", is_flag=True, help="Measure what the machine draws when it does nothing.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=30.0,
    show_default=True,
    help="For how long.",
)
def command(as_json: bool, sensors: tuple[str, ...], idle: bool, seconds: float) -> None:
    """Measure this machine at rest, so that measurements can show idle energy on its own line.

    The machine must be idle meanwhile. The result is kept under NEGAWATT_HOME and used from then on.
    """
    from negawatt.meter.calibrate import measure_idle
    from negawatt.meter.idle import save_idle

    if not idle:
        raise UsageError("say what to calibrate: --idle")
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
