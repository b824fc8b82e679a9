"""`Journal`: what the machine's ceilings were before they were lowered, on disk before anything is changed.

A process that is killed cannot put back what it changed. The journal names it and what was there; whoever
comes next puts that back. After a restart of the machine there is nothing to put back: it forgets limits.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negawatt.errors import EngineError
from negawatt.home import home, written_beside


@dataclass(frozen=True, slots=True)
class Change:
    """One value that is put in the place of another.

    Attributes:
        place: see `negawatt.limits.system.System`.
        before: None where nobody had set anything.
        after: what is put there.
    """

    place: str
    before: int | None
    after: int


@dataclass(frozen=True)
class Entry:
    """What one process has changed.

    Attributes:
        boot: since which start of the machine it runs.
        pid, started: the process, and when it was started, in the kernel's ticks since that.
        changes: in the order in which they were made.
    """

    boot: str
    pid: int
    started: int
    changes: tuple[Change, ...]

    @classmethod
    def of_this_process(cls, changes: Sequence[Change]) -> Entry:
        return cls(boot_id(), os.getpid(), started(os.getpid()) or 0, tuple(changes))

    @property
    def lasts(self) -> bool:
        """Whether the machine still runs since then, so that what was changed is still changed."""
        return self.boot == boot_id()

    @property
    def is_anothers(self) -> bool:
        """Whether another process made it that runs still."""
        return self.lasts and self.pid != os.getpid() and started(self.pid) == self.started


class Journal:
    """One file for each machine, so that machines that share a home do not take each other's for theirs.

    Args:
        place: the file; by default under ``NEGAWATT_HOME``.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place or home() / "limits" / f"{platform.node() or 'machine'}.json"

    def write(self, entry: Entry) -> None:
        """Keep an entry; it is on disk when this returns.

        Raises:
            NegawattError: the disk is full or the folder cannot be written.
        """
        with written_beside(self.place) as beside, beside.open("w", encoding="utf-8") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self.place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self) -> Entry | None:
        """What is kept; None where nothing is.

        Raises:
            EngineError: it is damaged.
        """
        try:
            return _entry(json.loads(self.place.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise EngineError(
                f"{self.place} should tell which power caps and clocks to put back, and cannot be read "
                f"({exc or type(exc).__name__}); look at them by hand and remove it"
            ) from exc

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self.place.unlink()


def _entry(data: Any) -> Entry:
    changes = tuple(
        Change(
            str(each["place"]), None if each["before"] is None else int(each["before"]), int(each["after"])
        )
        for each in data["changes"]
    )
    return Entry(str(data["boot"]), int(data["pid"]), int(data["started"]), changes)


def boot_id() -> str:
    """Of this start of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was (proc(5)); None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
