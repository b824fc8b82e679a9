"""``negawatt engines``: what can run models here, and the compiled runtime that can be fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from negawatt import catalog
from negawatt.cli.catalogue import described, pull_command
from negawatt.cli.common import emit, examples, json_option


@click.group()
def command() -> None:
    """List the engines, or fetch a compiled one."""


command.add_command(pull_command("runtime", "llamacpp"))


@command.command("list", epilog=examples("negawatt engines list", "negawatt engines list --json"))
@json_option
def list_engines(as_json: bool) -> None:
    """List the engines: whether each can run here, its version, and what to do about the rest."""
    from negawatt.engine import engines

    rows = engines()
    runtimes = {entry.name: described(entry) for entry in catalog.entries("runtime")}
    if as_json:
        emit([
            {**row, "runtime": runtimes.get(row["name"]), "other_runtimes": _others(row["name"], runtimes)}
            for row in rows
        ])  # fmt: skip
        return
    for row in rows:
        click.echo(f"{row['name']:<14}{row['status']:<8}{row['version'] or ''}")
        for text in (row["reason"], row["remedy"]):
            if text:
                click.echo(f"{'':<14}{text}")
        for other in _others(row["name"], runtimes):
            here = "is here" if other["path"] else f"negawatt engines pull {other['name']}"
            click.echo(f"{'':<14}{other['description']}: {here}")


def _others(engine: str, runtimes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Further compiled runtimes of an engine, such as those for other devices."""
    return [row for name, row in runtimes.items() if name.startswith(f"{engine}-")]
