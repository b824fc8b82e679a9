"""Reading the small files of sysfs, with errors that say which file and what to do."""

from __future__ import annotations

import os
from pathlib import Path

from negawatt.errors import SensorError
from negawatt.meter.sensor import SensorDenied


def text(path: Path) -> str:
    """Content of a file without its final newline.

    Raises:
        SensorDenied: it may not be read.
        SensorError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 65536).decode().strip()
        finally:
            os.close(fd)
    except PermissionError as exc:
        raise SensorDenied(
            f"permission denied on {path}",
            remedy=f"sudo chmod a+r {path.parent.parent}/*/{path.name} (until the machine starts anew), "
            "or run as root",
        ) from exc
    except OSError as exc:
        raise SensorError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise SensorError(f"{path} should hold a whole number and holds bytes that are no text") from exc


def number(path: Path) -> int:
    """A file that holds one whole number.

    Raises:
        SensorDenied: it may not be read.
        SensorError: it cannot be read, or holds something else.
    """
    content = text(path)
    try:
        return int(content)
    except ValueError as exc:
        raise SensorError(f"{path} should hold a whole number and holds {content[:40]!r}") from exc


def label(path: Path, otherwise: str) -> str:
    """A file that holds a name, or `otherwise` where there is no such file."""
    return text(path) if path.exists() else otherwise
