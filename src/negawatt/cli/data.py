"""``negawatt data``: the labelled data sets that can be fetched by name."""

from __future__ import annotations

import click

from negawatt import catalog
from negawatt.cli.catalogue import described, list_command, names_of, pull_command, show
from negawatt.cli.common import emit, examples, json_option


@click.group()
def command() -> None:
    """List, fetch and look at data sets."""


command.add_command(list_command("data"))
command.add_command(pull_command("data", "piqa"))


@command.command("show", epilog=examples("negawatt data show piqa", "negawatt data show piqa --json"))
@click.argument("name", shell_complete=names_of("data"))
@json_option
def show_data(name: str, as_json: bool) -> None:
    """Show a data set of the catalogue. Nothing is fetched."""
    row = described(catalog.entry(name, kind="data"))
    emit(row) if as_json else show(row)
