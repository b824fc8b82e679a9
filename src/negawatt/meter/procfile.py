"""`ProcFile`: a small file under ``/proc`` that is read again and again, through one descriptor."""

from __future__ import annotations

import os

DIGITS = tuple(b"%d" % digit for digit in range(10))
"""What a file of numbers begins with."""


class ProcFile:
    """Kept open: reading it again costs a third of opening, reading and closing it.

    What it holds may depend on who opened it (``/proc/self``), and a program may close descriptors
    that it does not know, whose numbers then go to other files. So the file is opened anew in
    another process, and whenever what comes does not begin as it must. A number that may be
    somebody else's by now is not closed. Safe to use from many threads.

    Args:
        path: the file.
        begins: what its content always begins with, or one of several.
        most_bytes: what is read of it.
    """

    def __init__(self, path: str, begins: bytes | tuple[bytes, ...], most_bytes: int = 4096) -> None:
        self._path, self._begins, self._most_bytes = path, begins, most_bytes
        self._fd, self._pid = -1, 0

    def read(self) -> bytes:
        """Its content now.

        Raises:
            OSError: it cannot be read.
        """
        if self._pid == os.getpid():
            try:
                text = os.pread(self._fd, self._most_bytes, 0)
                if text.startswith(self._begins):
                    return text
            except OSError:
                pass
        fd, kept = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), False
        try:
            text = os.pread(fd, self._most_bytes, 0)
            if kept := text.startswith(self._begins):
                self._fd, self._pid = fd, os.getpid()
            return text
        finally:
            if not kept:
                os.close(fd)


def whole(path: str) -> bytes:
    """All of a file that may be longer than the kernel hands out at once. Quicker than a file object.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(fd, 65536)]
        while parts[-1]:
            parts.append(os.read(fd, 65536))
        return b"".join(parts)
    finally:
        os.close(fd)
