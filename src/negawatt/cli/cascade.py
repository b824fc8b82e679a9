"""``negawatt cascade``: when a small model's answer is good enough."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.energy import Energy
from negawatt.errors import require


@click.group()
def command() -> None:
    """Find how sure a small model has to be before a large one need not be asked."""


@command.command(
    epilog=examples(
        "negawatt cascade calibrate server.toml auto ./questions",
        "negawatt cascade calibrate server.toml auto ./questions --max-drop 0.01 --items 400 -o auto.json",
    )
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("name")
@click.argument("workload")
@click.option(
    "--max-drop", type=click.FloatRange(0, 1, min_open=True), default=0.02, show_default=True,
    help="Of the mean score against the large model alone.",
)  # fmt: skip
@click.option(
    "--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True), default=0.95,
    show_default=True, help="Of the proof that the drop is not larger.",
)  # fmt: skip
@click.option("--items", type=click.IntRange(1), help="Ask so many of the workload's items, drawn evenly.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it.  [default: NAME.json]",
)  # fmt: skip
@json_option
def calibrate(
    config: Path,
    name: str,
    workload: str,
    max_drop: float,
    confidence: float,
    items: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Ask both models of the cascade NAME in CONFIG what WORKLOAD asks, and find its threshold.

    WORKLOAD has quality items of the kind generate. The threshold written is the lowest of those whose
    cascade is proved to lose at most --max-drop against the large model; `calibration = "NAME.json"` in the
    [[cascade]] makes `negawatt serve` use it. Where none is proved, nothing is written.
    """
    require("starlette", extra="serve")
    from negawatt.home import written_beside
    from negawatt.serve.calibration import calibrate as measured
    from negawatt.serve.config import ServerConfig
    from negawatt.workload import Workload

    read = ServerConfig.read(config)
    found = asyncio.run(
        measured(
            read, name, Workload.open(workload), most_drop=max_drop, confidence=confidence, most_items=items,
            tick=lambda said: click.echo(f"negawatt: {said}", err=True),
        )
    ).to_json()  # fmt: skip
    target = output or Path(f"{name}.json")
    with written_beside(target) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    if as_json:
        emit({**found, "file": str(target)})
    else:
        _print(found, target)


def _print(found: dict[str, Any], target: Path) -> None:
    for word, name in (("small", "small"), ("large", "large"), ("cascade", "both")):
        quality = found[name]["quality"]
        joules = Energy.from_json(found[name]["energy_per_item"])
        interval = f"({quality['low']:.3f} to {quality['high']:.3f})"
        click.echo(f"{word:8} {found['metric']} {quality['value']:.3f} {interval}, an item {joules}")
    drop = found["drop"]
    click.echo(
        f"threshold {found['threshold']:.4f} nats a token: the small model answers "
        f"{found['share_small']:.0%} of {found['n']} items, and the score drops by at most "
        f"{drop['at_most']:.4f} ({drop['confidence']:.0%} proof)"
    )
    if found["saving"] is not None:
        click.echo(f"saves {found['saving']:.0%} of the joules of asking the large model always")
    click.echo(f"wrote {target}")
