"""``negawatt budgets``: what keys and teams may spend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.keys import database_option, secret_option
from negawatt.errors import UsageError

if TYPE_CHECKING:
    from negawatt.serve.account import Account

_OWNER = click.argument("owner")
_PERIOD = click.option(
    "--per", "period", default="day", show_default=True, help="day, month, or rolling:24h, rolling:7d."
)


def _account(database: str | None, secret_file: Path | None) -> Account:
    from negawatt.database import Database, default_url
    from negawatt.serve.account import Account
    from negawatt.serve.keys import server_secret
    from negawatt.serve.ledger import ReceiptLedger

    opened = Database(database or default_url())
    return Account(opened, ReceiptLedger(opened, server_secret(secret_file)))


@click.group()
def command() -> None:
    """Set, list and remove budgets of keys, teams and the server."""


@command.command(
    "set",
    epilog=examples(
        "negawatt budgets set team:research --per month --joules 3.6e7 --grams 4000",
        "negawatt budgets set key:3f9c2a7be410 --tokens 2e5 --step 0.8=shorten:64 --step 0.9=smaller:tiny",
        "negawatt budgets set server --per rolling:24h --joules 1e6 --step 0.9=defer --json",
    ),
)
@_OWNER
@_PERIOD
@click.option("--joules", type=click.FloatRange(0), help="Energy.")
@click.option("--grams", type=click.FloatRange(0), help="CO₂ equivalent; needs a server that knows its grid.")
@click.option("--tokens", type=click.FloatRange(0), help="Tokens, read and written.")
@click.option("--requests", type=click.FloatRange(0), help="Requests.")
@click.option(
    "--step",
    "steps",
    multiple=True,
    metavar="SHARE=ACTION",
    help="What happens from a share on: shorten:TOKENS, smaller:MODEL, defer or refuse; repeatable.",
)
@database_option
@secret_option
@json_option
def set_budget(
    owner: str,
    period: str,
    steps: tuple[str, ...],
    database: str | None,
    secret_file: Path | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Set the budget of OWNER: key:ID, team:NAME or server. It replaces the one of the same period."""
    from negawatt.serve.budget import Budget, Period, Step

    budget = Budget(owner, Period(period), **limits, steps=tuple(Step.parse(text) for text in steps))
    account = _account(database, secret_file)
    if owner.startswith("key:"):
        from negawatt.database import Database, default_url
        from negawatt.serve.keys import Keys, server_secret

        keys = Keys(Database(database or default_url()), server_secret(secret_file))
        if owner.removeprefix("key:") not in {key.id for key in keys.all()}:
            raise UsageError(f"there is no key {owner!r}; `negawatt keys list` shows their ids")
    account.put(budget)
    if as_json:
        emit(budget.to_json())
        return
    click.echo(f"{owner} has a budget per {period}")


@command.command("list", epilog=examples("negawatt budgets list", "negawatt budgets list --json"))
@database_option
@secret_option
@json_option
def list_budgets(database: str | None, secret_file: Path | None, as_json: bool) -> None:
    """List the budgets, with what was spent and what running requests hold."""
    found = _account(database, secret_file).uses()
    if as_json:
        emit([u.budget.to_json() | {"spent": u.spent.to_json(), "held": u.held.to_json()} for u in found])
        return
    from negawatt.serve.budget import KINDS

    for use in found:
        parts = [
            f"{spent:,.6g} of {limit:,.6g} {kind}"
            for kind, limit, spent in zip(KINDS, use.budget.limits, use.used.values, strict=True)
            if limit is not None
        ]
        steps = "".join(f"; {step}" for step in use.budget.steps)
        click.echo(f"{use.budget.owner} per {use.budget.period.text}: {', '.join(parts)}{steps}")


@command.command(
    "remove",
    epilog=examples(
        "negawatt budgets remove team:research --per month", "negawatt budgets remove server --json"
    ),
)
@_OWNER
@_PERIOD
@database_option
@secret_option
@json_option
def remove(owner: str, period: str, database: str | None, secret_file: Path | None, as_json: bool) -> None:
    """Take a budget from OWNER."""
    from negawatt.serve.budget import Period

    _account(database, secret_file).drop(owner, Period(period))
    if as_json:
        emit({"owner": owner, "period": period})
        return
    click.echo(f"{owner} has no budget per {period} any more")
