"""One process at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from negawatt.catalog.http import Progress
from negawatt.errors import NegawattError
from negawatt.home import home


@contextmanager
def locked(path: Path, progress: Progress | None = None) -> Iterator[None]:
    """Hold an advisory lock on the file `path`, waiting for whoever holds it.

    The kernel frees the lock when this process ends, however it ends.

    Raises:
        NegawattError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as exc:
        raise NegawattError(
            f"cannot write under {home()}: {exc.strerror or exc}; choose another NEGAWATT_HOME"
        ) from exc
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if progress:
                    progress(0, None, "waiting for another process that makes the same")
                time.sleep(0.2)
        yield
