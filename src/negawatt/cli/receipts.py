"""``negawatt receipts``: what requests to the server cost."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.keys import database_option, secret_option


def day_start(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Seconds since the epoch of a day's begin or a time."""
    if text is None:
        return None
    try:
        moment = datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as exc:
            raise click.BadParameter(f"expected a day such as 2026-03-01, or a time, not {text!r}") from exc
        if moment.tzinfo is None:
            raise click.BadParameter(f"{text} has no time zone; add Z or an offset such as +01:00") from None
    return moment.timestamp()


@click.command(
    epilog=examples(
        "negawatt receipts",
        "negawatt receipts --by team --by day --since 2026-03-01",
        "negawatt receipts --by model --team research --json",
    )
)
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["key", "team", "model", "day", "outcome"]),
    help="A sum for each of these; repeatable.",
)
@click.option(
    "--since", callback=day_start, metavar="DAY", help="First day, or a time with a zone; days are UTC."
)
@click.option("--until", callback=day_start, metavar="DAY", help="The day after the last.")
@click.option("--key", metavar="ID", help="Of this key alone.")
@click.option("--team", metavar="NAME", help="Of this team alone.")
@click.option("--model", metavar="NAME", help="Of this model alone.")
@database_option
@secret_option
@json_option
def command(
    by: tuple[str, ...],
    since: float | None,
    until: float | None,
    key: str | None,
    team: str | None,
    model: str | None,
    database: str | None,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    """Add up joules, grams, money and tokens of the requests in the server's ledger.

    Of a sum that lacks a part the known part is told, and that it is not all.
    """
    from negawatt.database import Database, default_url
    from negawatt.serve.keys import server_secret
    from negawatt.serve.ledger import ReceiptLedger
    from negawatt.serve.sums import Filter, sums

    opened = Database(database or default_url())
    ReceiptLedger(opened, server_secret(secret_file))  # makes the tables where there are none
    found = sums(opened, by, Filter(since, until, key, team, model))  # type: ignore[arg-type]
    if as_json:
        emit([line.to_json() for line in found])
        return
    for line in found:
        title = "  ".join(f"{name} {value or '–'}" for name, value in line.group.items())
        amounts = "".join(f"; {amount}" for amount in line.amounts.values() if amount is not None)
        tokens = f"{line.input_tokens} tokens in, {line.output_tokens} out"
        click.echo(f"{title or 'all'}: {line.receipts} requests, {tokens}: {line.energy}{amounts}")
    if not found:
        click.echo("no receipts", err=True)
