"""``negawatt hotspots``: what a program's functions, or a model's layers and operators, spend."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negawatt.cli.common import emit, examples, json_option, progress_bar
from negawatt.cli.measure import sensor_option, station_with
from negawatt.errors import UsageError

if TYPE_CHECKING:
    from negawatt.hotspots import Hotspots


@click.command(
    context_settings={"allow_interspersed_args": False},  # from the first word on, all belongs to COMMAND
    epilog=examples(
        "negawatt hotspots -- python train.py --epochs 3",
        "negawatt hotspots -o flame.html -- python train.py",
        "negawatt hotspots --model smollm2-135m-instruct -o flame.html",
        "negawatt hotspots --model ./my-model --prompt 'Why is the sky blue?' --new 64 --json",
    ),
)
@json_option
@sensor_option
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="Write the flame graph to this file, one HTML page.",
)  # fmt: skip
@click.option("--model", metavar="MODEL", help="Look into this model instead of running a command.")
@click.option("--prompt", help="With --model: the text it continues.")
@click.option("--new", type=click.IntRange(1), help="With --model: tokens to generate. Default: 16.")
@click.option("--passes", type=click.IntRange(1), help="With --model: measured passes. Default: 4.")
@click.option("--threads", type=click.IntRange(1), help="With --model: threads. Default: torch's choice.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(
    command: tuple[str, ...],
    as_json: bool,
    sensors: tuple[str, ...],
    output: Path | None,
    model: str | None,
    **options: Any,
) -> int:
    """Run COMMAND, or a model, and tell which parts of it spent the joules.

    COMMAND's Python functions are sampled, in all Python processes it starts; its input, output and
    exit code pass through as with negawatt measure. With --model, prefill and decode of one prompt
    are split by layer and operator, with FLOPs and bytes. All parts add up to the whole.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if (model is None) == (not command):
        raise UsageError("expected either a command after -- or --model MODEL")
    if model is None and given:
        raise UsageError(f"--{', --'.join(given)} goes with --model")
    code = 0
    if model is None:
        from negawatt.hotspots import of_command

        code, found = of_command(command, output_to_stderr=as_json, station=partial(station_with, sensors))
    else:
        found = _of_model(model, sensors, given)
    if output is not None:
        from negawatt.home import written_beside
        from negawatt.hotspots.flame import page

        with written_beside(output) as temporary:
            temporary.write_text(page(found), "utf-8")
    if as_json:
        emit({**found.to_json(), "exit_code": code, "command": list(command)})
    else:
        click.echo(_summary(found), err=model is None)
    return code


def _of_model(name: str, sensors: tuple[str, ...], given: dict[str, Any]) -> Hotspots:
    from negawatt.artifact import Artifact
    from negawatt.hotspots import of_model

    if "new" in given:
        given["n_new"] = given.pop("new")
    with progress_bar("hotspots") as report:
        artifact = Artifact.open(name, progress=report)
        return of_model(artifact, station=station_with(sensors), progress=report, **given)


def _summary(found: Hotspots) -> str:
    from negawatt.hotspots import table

    measured = found.measurement
    width = shutil.get_terminal_size((100, 24)).columns if sys.stderr.isatty() else 160
    blocks = [
        f"negawatt: {measured.energy} in {measured.duration_s:.2f} s, {measured.cpu_s:.2f} CPU-seconds: "
        f"{found.title}"
    ]
    if roles := table.role_rows(found):
        blocks.append(table.text(table.ROLE_HEAD, roles, width))
    blocks.append(table.text(table.spot_head(found), table.spot_rows(found), width))
    if found.samples is not None:
        blocks.append(f"{found.samples:,} samples; a share's interval holds what they leave open")
    return "\n\n".join(
        ["\n".join(blocks[:1]), *blocks[1:], "\n".join((*found.notes, *measured.warnings))]
    ).rstrip()
