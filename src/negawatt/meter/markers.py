"""`Markers`: stages of a command that it names itself, by lines it appends to a file.

The measured command finds the file's name in the environment variable ``NEGAWATT_STAGES`` and
appends ``start NAME`` and ``stop NAME``. It is a plain file, so that writing to it never waits for
anybody, and goes on working when nobody reads it. The kernel tells when it has grown (inotify(7)),
so that a stage begins and ends when its line was written, to about a millisecond.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from negawatt.meter.stages import Ledger

VARIABLE = "NEGAWATT_STAGES"
_LONGEST = 1000
_MOST_STAGES = 10_000
_IN_MODIFY = 0x2


class Markers:
    """Follows one such file from a thread of its own.

    Args:
        ledger: gives the stages of the running window.
    """

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._folder = Path(tempfile.mkdtemp(prefix="negawatt-"))
        self._path = self._folder / "stages"
        self._file = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._torn = b""
        self._open: list[tuple[str, int]] = []  # names and positions, innermost last
        self._stages = 0
        self._ignored = 0
        self._first_ignored = ""
        self._bell, self._ring = os.pipe()
        self._thread = threading.Thread(target=self._follow, name="negawatt-stages", daemon=True)
        self._thread.start()

    @property
    def environment(self) -> Mapping[str, str]:
        """What the command needs in its environment."""
        return {VARIABLE: str(self._path)}

    def finish(self) -> list[str]:
        """Read what is left, remove the file; return sentences about lines that were not understood."""
        os.write(self._ring, b".")
        self._thread.join()
        self._read()
        if self._torn:
            self._line(self._torn)
        for fd in (self._file, self._bell, self._ring):
            os.close(fd)
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self._ignored:
            return []
        lines = "line" if self._ignored == 1 else "lines"
        return [f"{self._ignored} {lines} about stages ignored, the first: {self._first_ignored}"]

    def _follow(self) -> None:
        # Signals are the main thread's business: it passes them on to the measured command.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        notice = _watch(self._path)
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if notice is not None:
            poll.register(notice, select.POLLIN)
        try:
            while True:
                ready = poll.poll(None if notice is not None else 50)
                if any(fd == self._bell for fd, _ in ready):
                    return
                if notice is not None:
                    os.read(notice, 4096)
                self._read()
        finally:
            if notice is not None:
                os.close(notice)

    def _read(self) -> None:
        while data := os.read(self._file, 65536):
            *lines, self._torn = (self._torn + data).split(b"\n")
            self._torn = self._torn[: _LONGEST + 1]  # the rest of such a line is of no use
            for line in lines:
                self._line(line)

    def _line(self, data: bytes) -> None:
        text = data[:_LONGEST].decode("utf-8", "replace").strip()
        word, _, name = text.partition(" ")
        name = name.strip()
        if not text:
            return
        if len(data) > _LONGEST or word not in ("start", "stop") or not name:
            self._ignore(f"expected 'start NAME' or 'stop NAME', not {text[:60]!r}")
        elif word == "start":
            self._start(name)
        else:
            self._stop(name)

    def _start(self, name: str) -> None:
        if self._stages >= _MOST_STAGES:
            self._ignore(f"'start {name}' is beyond {_MOST_STAGES} stages")
            return
        self._stages += 1
        parent = self._open[-1][1] if self._open else None
        self._open.append((name, self._ledger().open(name, parent)))

    def _stop(self, name: str) -> None:
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place][0] == name:
                _, position = self._open.pop(place)
                self._ledger().lift(position)  # those begun in it that go on were beside it after all
                self._ledger().close(position)
                return
        self._ignore(f"'stop {name}' without a start")

    def _ignore(self, why: str) -> None:
        self._ignored += 1
        self._first_ignored = self._first_ignored or why


def _watch(path: Path) -> int | None:
    """A file descriptor that is readable when the file has grown, or None where there is none such."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_CLOEXEC))
    if fd < 0:
        return None
    if libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(fd)
        return None
    return fd


@contextmanager
def marked(name: str) -> Iterator[None]:
    """Name a part of a Python program that ``negawatt measure`` runs; elsewhere it does nothing.

    ::

        with marked("train"):
            train()
    """
    _mark(f"start {name}")
    try:
        yield
    finally:
        _mark(f"stop {name}")


def _mark(line: str) -> None:
    path = os.environ.get(VARIABLE)
    if path:
        with suppress(OSError), open(path, "ab", buffering=0) as file:
            file.write(" ".join(line.split()).encode() + b"\n")
