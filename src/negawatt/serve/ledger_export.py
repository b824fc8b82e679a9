"""The ledger as CSV or Parquet: a row a receipt, written whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from negawatt.database import Row
from negawatt.errors import UsageError, require
from negawatt.home import written_beside
from negawatt.serve.ledger import COLUMNS, ReceiptLedger

NAMES = ("seq", "created", *COLUMNS)
"""Columns of the files. ``created`` is ``created_s`` as a time; what is not known is empty, never 0."""

_ROWS = 10_000


def export(ledger: ReceiptLedger, target: Path) -> int:
    """Write every receipt to a file whose name ends in ``.csv`` or ``.parquet``; how many there were.

    Raises:
        UsageError: the name ends otherwise.
        MissingDependency: Parquet is asked for and pyarrow is not installed.
        NegawattError: the file cannot be written.
    """
    kind = target.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UsageError(f"expected a file that ends in .csv or .parquet, not {target.name!r}")
    write = _csv if kind == ".csv" else _parquet
    with written_beside(target) as temporary:
        return write(_rows(ledger), temporary)


def _rows(ledger: ReceiptLedger) -> Iterator[Row]:
    place = 1 + list(COLUMNS).index("created_s")
    for row in ledger.rows():
        yield (row[0], datetime.fromtimestamp(row[place], UTC), *row[1:])


def _csv(rows: Iterator[Row], target: Path) -> int:
    count = 0
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(NAMES)
        for count, row in enumerate(rows, 1):  # noqa: B007
            writer.writerow([row[0], row[1].isoformat(timespec="milliseconds"), *map(_inert, row[2:])])
    return count


def _inert(field: Any) -> Any:
    """A text that a spreadsheet would take for a formula, so marked that it does not."""
    return f"'{field}" if isinstance(field, str) and field[:1] in ("=", "+", "-", "@", "\t", "\r") else field


def _parquet(rows: Iterator[Row], target: Path) -> int:
    arrow = require("pyarrow", extra="parquet")
    parquet = require("pyarrow.parquet", extra="parquet")
    kinds = {"TEXT": arrow.string(), "BIGINT": arrow.int64(), "DOUBLE": arrow.float64()}
    schema = arrow.schema(
        [
            ("seq", arrow.int64()),
            ("created", arrow.timestamp("ms", "UTC")),
            *((name, kinds[kind.split()[0]]) for name, kind in COLUMNS.items()),
        ]
    )
    count = 0
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        while page := list(islice(rows, _ROWS)):
            columns = dict(zip(NAMES, zip(*page, strict=True), strict=True))
            writer.write_table(arrow.table({name: list(c) for name, c in columns.items()}, schema=schema))
            count += len(page)
    return count
