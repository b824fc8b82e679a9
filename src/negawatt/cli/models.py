"""``negawatt models``: the models that can be fetched by name, and what a model on disk is."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from negawatt import catalog
from negawatt.artifact import Artifact
from negawatt.cli.catalogue import described, list_command, names_of, pull_command, show, size
from negawatt.cli.common import emit, examples, json_option


@click.group()
def command() -> None:
    """List, fetch and look at models."""


command.add_command(list_command("model"))
command.add_command(pull_command("model", "smollm2-135m-instruct"))


@command.command(
    "show",
    epilog=examples(
        "negawatt models show smollm2-135m-instruct",
        "negawatt models show ./my-checkpoint --json",
        "negawatt models show model.gguf",
    ),
)
@click.argument("ref", metavar="MODEL", shell_complete=names_of("model"))
@json_option
def show_model(ref: str, as_json: bool) -> None:
    """Show a model of the catalogue, or a folder or file of your own. Nothing is fetched."""
    known = {entry.name: entry for entry in catalog.entries("model")}
    row = described(known[ref]) if ref in known else None
    facts = _facts(Artifact.open(ref)) if row is None or row["path"] else {}
    if as_json:
        emit({**(row or {}), **facts})
        return
    if row:
        show(row)
    for title, text in facts.items():
        if title == "shape":
            click.echo("".join(f"{name:<18}{value}\n" for name, value in text.items()), nl=False)
        elif title == "weight_bytes":
            click.echo(f"{'weights':<12}{size(text)}")
        elif title not in (row or {}) and text:
            click.echo(f"{title:<12}{text if isinstance(text, str) else ', '.join(map(str, text))}")


def _facts(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "path": str(artifact.path),
        "source": artifact.source,
        "license": artifact.license,
        "notes": artifact.notes,
        "formats": sorted(artifact.formats),
        "sha256": artifact.sha256,
        "lineage": list(artifact.lineage),
        "weight_bytes": artifact.weight_bytes,
        "shape": dataclasses.asdict(artifact.shape),
    }
