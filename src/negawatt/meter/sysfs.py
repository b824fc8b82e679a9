"""Reading the small files of sysfs, with errors that say which file and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from negawatt.errors import SensorError
from negawatt.meter.sensor import SensorDenied

Found = TypeVar("Found")


class Layout(Generic[Found]):
    """What is worth reading below a folder of devices, found anew when a device comes or goes.

    Listing the folder on every read costs a few µs, walking it again some hundred.

    Args:
        find: finds what to read among the names in the folder.
    """

    def __init__(self, find: Callable[[Sequence[str]], list[Found]]) -> None:
        self._find = find
        self._seen: tuple[Path, list[str]] | None = None
        self._found: list[Found] = []

    def __call__(self, root: Path) -> list[Found]:
        """What `find` found among the names that are in `root` now; it need not exist."""
        try:
            names = os.listdir(root)
        except OSError:
            names = []
        if (root, names) != self._seen:
            self._found = self._find(names)
            self._seen = (root, names)
        return self._found


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
