"""``negawatt doctor``: what can be measured and run here, why not, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.measure import sensor_option, station_with
from negawatt.errors import NegawattError

_STYLES = {"ok": "green", "dead": "red", "denied": "yellow", "absent": "dim"}
_ORDER = {status: place for place, status in enumerate(_STYLES)}


@click.command(
    epilog=examples(
        "negawatt doctor",
        "negawatt doctor --sensor shelly:http://192.168.1.5",
        "negawatt doctor --json | jq '.sensors[] | .name, .status'",
    )
)
@json_option
@sensor_option
def command(as_json: bool, sensors: tuple[str, ...]) -> None:
    """Tell what can be measured and run here, and what to do about the rest."""
    document = diagnose(sensors)
    if as_json:
        emit(document)
        return
    _print(document)


def diagnose(sensors: Sequence[str] = ()) -> dict[str, Any]:
    """The document of ``negawatt doctor --json``: machine, sensors (and those named), engines,
    the devices that these find beside the processor, limits."""
    from negawatt.meter import fingerprint

    told = _limits()  # first: probing keeps a core busy, which may not be under a limit of a dead process
    here = station_with(sensors)
    model = {
        "name": "cpu-time model",
        "status": "ok",
        "reason": here.power.summary,
        "remedy": "",
        "components": ["cpu"],
    }
    return {
        "machine": fingerprint(),
        "sensors": [*(status.to_json() for status in here.statuses), model],
        "engines": _engines(),
        "devices": _devices(),
        **told,
    }


def _limits() -> dict[str, Any]:
    """What can be limited here, and ``notes`` on what is, or was put back just now."""
    from negawatt.limits.limits import statuses
    from negawatt.limits.turn import put_back

    try:
        notes = put_back()
    except NegawattError as exc:
        notes = [str(exc)]
    return {"limits": statuses(), "notes": notes}


def _engines() -> list[dict[str, Any]]:
    import negawatt.engine

    return list(negawatt.engine.engines())


def _devices() -> list[dict[str, Any]]:
    from negawatt.engine.backends import devices

    return devices()


def _print(document: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    machine = document["machine"]
    kind = {"vm": "virtual machine", "container": "container", None: "bare metal"}[machine["virtualised"]]
    console.print(
        f"[bold]Machine[/bold]  {machine['cpu']}, {machine['cores']:g} cores, "
        f"{machine['memory_bytes'] / 2**30:.1f} GiB, {kind}, {machine['os']} {machine['kernel']}"
    )
    _table(console, "Sensors", document["sensors"])
    _table(console, "Engines", document["engines"])
    _table(console, "Devices", document["devices"])
    _table(console, "Limits", document["limits"])
    for note in document["notes"]:
        click.echo(f"note: {note}", err=True)
    trusted = [s["name"] for s in document["sensors"][:-1] if s["status"] == "ok"]
    if trusted:
        console.print(f"Energy is measured here by {', '.join(trusted)}.")
    else:
        console.print("No counter here can be trusted: energy is estimated from CPU time, with a wide band.")


def _table(console: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in sorted(rows, key=lambda row: _ORDER.get(row["status"], len(_ORDER))):
        style = _STYLES.get(row["status"], "red")
        seen = " ".join(filter(None, (str(row.get("version") or ""), str(row.get("reason") or ""))))
        remedy = f"\n→ {row['remedy']}" if row["remedy"] else ""
        table.add_row(f"[{style}]{row['status']}[/]", row["name"], escape(seen + remedy))
    console.print()
    console.print(table)
    console.print()
