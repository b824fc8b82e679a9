"""``negawatt ledger``: whether the receipts are all there and as they were, and files of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.keys import database_option, secret_option

if TYPE_CHECKING:
    from negawatt.serve.ledger import ReceiptLedger


def _ledger(database: str | None, secret_file: Path | None) -> ReceiptLedger:
    from negawatt.database import Database, default_url
    from negawatt.serve.keys import server_secret
    from negawatt.serve.ledger import ReceiptLedger

    return ReceiptLedger(Database(database or default_url()), server_secret(secret_file))


@click.group()
def command() -> None:
    """Check the server's ledger of receipts, or write it to a file."""


@command.command(
    "verify",
    epilog=examples("negawatt ledger verify", "negawatt ledger verify --expect 1042:9c1f… --json"),
)
@click.option(
    "--expect", metavar="HEAD", help="A head that an earlier call printed: it must be part of this one."
)
@database_option
@secret_option
@json_option
def verify(expect: str | None, database: str | None, secret_file: Path | None, as_json: bool) -> None:
    """Go through every receipt: changed, deleted, inserted or moved ones are found.

    Prints the head. Keep it elsewhere and give it to a later call, which then also finds a ledger that was
    put back to an earlier state or begun anew. Exit code 1 when something is wrong.
    """
    from negawatt.serve.ledger import Head

    expected = None
    if expect is not None:
        match = re.fullmatch(r"(\d+):([0-9a-f]{64})", expect)
        if match is None:
            raise click.BadParameter(
                "expected a head such as `negawatt ledger verify` prints", param_hint="--expect"
            )
        expected = Head(int(match[1]), match[2])
    found = _ledger(database, secret_file).verify(expected)
    if as_json:
        emit(found.to_json())
    else:
        click.echo(f"{found.head.seq} receipts, head {found.head}")
    for fault in found.faults:
        click.echo(f"negawatt: {fault}", err=True)
    if found.faults:
        sys.exit(1)


@command.command(
    "export",
    epilog=examples("negawatt ledger export receipts.csv", "negawatt ledger export receipts.parquet --json"),
)
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@database_option
@secret_option
@json_option
def export_ledger(target: Path, database: str | None, secret_file: Path | None, as_json: bool) -> None:
    """Write all receipts to FILE, CSV or Parquet by its ending; what is not known stays empty."""
    from negawatt.serve.ledger_export import export

    count = export(_ledger(database, secret_file), target)
    if as_json:
        emit({"file": str(target), "receipts": count})
    else:
        click.echo(f"{count} receipts written to {target}")
