"""CSV, appended to: whole lines, by one writer at a time, whatever happens in between."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import stat
from pathlib import Path

from negawatt.export.exporter import Exporter, ExportError
from negawatt.export.rows import Row, rows
from negawatt.monitor.sample import Sample


class CsvExporter(Exporter):
    """Appends the rows of every sample to a file.

    A line torn by a kill or a full disk is not continued: what could not be written whole is taken
    back, and the next sample begins on a line of its own. Missing figures are empty fields.

    Args:
        path: of the file; it is made if there is none, and must hold the same columns otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"CSV file {path}"
        self._path = path
        self._fd: int | None = None

    def open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            if stat.S_ISREG(os.fstat(self._fd).st_mode):  # a device or a pipe is nobody's own
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ExportError("another process writes to it; name another file") from exc
        except OSError as exc:
            raise ExportError(f"cannot be written: {exc.strerror or exc}") from exc
        header = ",".join(Row._fields)
        size = os.fstat(self._fd).st_size
        if size == 0:
            self._append(header + "\n")
        elif os.pread(self._fd, len(header) + 1, 0) != f"{header}\n".encode():
            raise ExportError("it holds other columns; name another file")
        elif os.pread(self._fd, 1, size - 1) != b"\n":
            self._append("\n")

    def export(self, sample: Sample) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows(sample):
            writer.writerow([row.time.isoformat(timespec="milliseconds"), *row[1:]])
        self._append(text.getvalue())

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, text: str) -> None:
        """Write all of it or nothing."""
        assert self._fd is not None
        data = text.encode()
        try:
            before = os.fstat(self._fd).st_size
            if os.write(self._fd, data) == len(data):
                return
            os.ftruncate(self._fd, before)
        except OSError as exc:
            raise ExportError(f"cannot be written: {exc.strerror or exc}") from exc
        raise ExportError("cannot be written: no space left on device")
