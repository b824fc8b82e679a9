"""What every command shares: JSON output, progress on standard error, sentences for errors."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``: one JSON document on standard output, everything else on standard error."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def emit(data: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str, *, err: bool = False) -> None:
    """Print a line above a progress bar, if there is one: click's `echo` would write into its line."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def offers(table: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completion in a shell by the keys of a table, ``MODULE:NAME``, which is imported only then."""

    def offered(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        module, _, name = table.partition(":")
        return [key for key in getattr(importlib.import_module(module), name) if key.startswith(begun)]

    return offered


def examples(*lines: str) -> str:
    """Epilogue of ``--help``: example calls, one a line.

    ``\\b`` keeps click from re-wrapping the block.
    """
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


Progress = Callable[[float, float | None, str], None]
"""Called with (done, total or None, what is being done)."""


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar on standard error when that is a terminal; silent otherwise."""
    if not sys.stderr.isatty():
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def report(done: float, total: float | None, text: str) -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield report
