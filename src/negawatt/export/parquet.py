"""Parquet, appended to: a folder of parts, each written beside its place and renamed when whole.

A single Parquet file cannot be appended to, and one that is still being written cannot be read. A
folder of parts can be both, and pandas, Polars, DuckDB and Arrow open it like a file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from negawatt.errors import NegawattError, installed_version, require
from negawatt.export.exporter import Exporter, ExportError
from negawatt.export.rows import Row, rows
from negawatt.home import written_beside
from negawatt.monitor.sample import Sample

PART_S = 60.0
_PART_ROWS = 20_000


class ParquetExporter(Exporter):
    """Adds a part to the folder every minute, and at the end.

    Args:
        folder: made if there is none; parts that are in it stay.

    Raises:
        MissingDependency: pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        installed_version("pyarrow", extra="parquet")
        self.name = f"Parquet folder {folder}"
        self._folder = folder
        self._rows: list[Row] = []
        self._since_s = 0.0

    def open(self) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise ExportError("it is a file; Parquet is appended to as a folder of parts, so name a folder")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ExportError(f"cannot be made: {exc.strerror or exc}") from exc
        require("pyarrow.parquet", extra="parquet")
        self._since_s = time.monotonic()

    def export(self, sample: Sample) -> None:
        self._rows += rows(sample)
        if len(self._rows) >= _PART_ROWS or time.monotonic() - self._since_s >= PART_S:
            self._write()

    def close(self) -> None:
        if self._rows:
            self._write()

    def _write(self) -> None:
        arrow = require("pyarrow", extra="parquet")
        parquet = require("pyarrow.parquet", extra="parquet")
        kept, self._rows, self._since_s = self._rows, [], time.monotonic()
        columns = {name: [row[place] for row in kept] for place, name in enumerate(Row._fields)}
        table = arrow.table(columns, schema=_schema(arrow))
        part = self._folder / f"{time.time_ns()}-{os.getpid()}.parquet"  # names sort by time
        try:
            with written_beside(part) as temporary:
                parquet.write_table(table, temporary, compression="zstd")
        except NegawattError as exc:
            raise ExportError(str(exc)) from exc


def _schema(arrow: Any) -> Any:
    texts = ("kind", "name", "cgroup", "container", "pod", "provenance", "reason")
    kinds = dict.fromkeys(texts, arrow.string())
    kinds |= {"time": arrow.timestamp("ms", "UTC"), "pid": arrow.int64(), "memory_bytes": arrow.int64()}
    return arrow.schema([(name, kinds.get(name, arrow.float64())) for name in Row._fields])
