"""``negawatt keys``: who may call the server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negawatt.cli.common import emit, examples, json_option

if TYPE_CHECKING:
    from negawatt.serve.keys import Keys

_DAYS = re.compile(r"(\d+(?:\.\d+)?)(h|d)")


def database_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--database``: where the server keeps what it keeps."""
    return click.option(
        "--database",
        metavar="URL",
        help="SQLite file or postgresql://… of the server; by default NEGAWATT_DATABASE, or a file in "
        "Negawatt's home.",
    )(function)


def secret_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--secret-file``: the server's secret."""
    return click.option(
        "--secret-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The server's secret; made when it is not there.",
    )(function)


def _keys(database: str | None, secret_file: Path | None) -> Keys:
    from negawatt.database import Database, default_url
    from negawatt.serve.keys import Keys, server_secret

    return Keys(Database(database or default_url()), server_secret(secret_file))


def lasting(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Seconds in ``30d`` or ``12h``."""
    if text is None:
        return None
    match = _DAYS.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"expected a time such as 30d or 12h, not {text!r}")
    return float(match[1]) * (3600 if match[2] == "h" else 86400)


@click.group()
def command() -> None:
    """Make, list and revoke the keys that open the server."""


@command.command(
    "create",
    epilog=examples(
        "negawatt keys create notebook",
        "negawatt keys create nightly --team research --priority -1 --tokens-per-minute 20000",
        "negawatt keys create visitor --expires 7d --requests-per-minute 10 --json",
    ),
)
@click.argument("name")
@click.option("--team", default="", help="Whose budget it draws on too.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher goes first."
)
@click.option(
    "--requests-per-minute", type=click.FloatRange(0, min_open=True), help="Rate limit of requests."
)
@click.option("--tokens-per-minute", type=click.FloatRange(0, min_open=True), help="Rate limit of tokens.")
@click.option("--expires", "lifetime_s", callback=lasting, metavar="30d", help="Days or hours it lasts.")
@database_option
@secret_option
@json_option
def create(
    name: str,
    lifetime_s: float | None,
    database: str | None,
    secret_file: Path | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Make a key called NAME. It is shown this once: only a keyed hash of it is kept."""
    expires_s = None if lifetime_s is None else time.time() + lifetime_s
    key, text = _keys(database, secret_file).create(name, expires_s=expires_s, **chosen)
    if as_json:
        emit({**key.to_json(), "key": text})
        return
    click.echo(text)
    click.echo(f"key {key.id} is shown this once; keep it safe", err=True)


@command.command("list", epilog=examples("negawatt keys list", "negawatt keys list --json"))
@database_option
@secret_option
@json_option
def list_keys(database: str | None, secret_file: Path | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    found = _keys(database, secret_file).all()
    if as_json:
        emit([key.to_json() for key in found])
        return
    now_s = time.time()
    for key in found:
        state = "holds" if key.holds(now_s) else "revoked" if key.revoked_s is not None else "expired"
        made = f"{datetime.fromtimestamp(key.created_s, UTC):%Y-%m-%d}"
        click.echo(f"{key.id}  {state:<8} {made}  {key.team or '–':<16} {key.priority:>4}  {key.name}")


@command.command(
    "revoke", epilog=examples("negawatt keys revoke 3f9c2a7be410", "negawatt keys revoke 3f9c2a7be410 --json")
)
@click.argument("identity", metavar="ID")
@database_option
@secret_option
@json_option
def revoke(identity: str, database: str | None, secret_file: Path | None, as_json: bool) -> None:
    """End the key ID. Running servers refuse it within a second."""
    key = _keys(database, secret_file).revoke(identity)
    if as_json:
        emit(key.to_json())
        return
    click.echo(f"key {key.id} ({key.name}) is revoked")
