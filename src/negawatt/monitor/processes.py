"""`ProcessTable`: every process that can be seen, and the CPU time each has used since the last look.

Made to be asked ten times a second. A process's CPU time is one system call on its POSIX CPU clock,
to the nanosecond, without opening a file. New processes are found by the ids given out since the
last look (the kernel tells the newest), the files of a process are read only when it is new or has
run, and one that has long slept is asked no more than twice a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from negawatt.meter.process import own_cpu_s
from negawatt.meter.procfile import DIGITS, ProcFile
from negawatt.monitor.groups import Group, group, group_path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_RELIST_S = 5.0
"""Seconds after which ``/proc`` is listed, and a group read anew, even if nothing seems to have changed."""
_RENEW_S = 0.9
"""Age at which what is known of a process that ran is renewed: at every look once a second."""
_SWEEP_S = 0.5
_AWAKE_S = 2.0
"""A process that has not run for so long is asked only every `_SWEEP_S`, until it runs again."""
_MOST_TRIED = 300
_MOST_GROUPS = 10_000


class Process:
    """A process as last seen. Told apart from others by `pid` and `start` together.

    Attributes:
        pid, parent: process ids.
        start: when it began, in ticks since the machine started.
        name: the kernel's name of it, at most 15 characters.
        group: the control group it runs in.
        memory_bytes: resident memory.
        cpu_s: CPU seconds of the process itself so far.
        used_s: CPU seconds since the look before, with what its ended children used unseen.
    """

    __slots__ = (
        "charged_s", "cpu_s", "group", "grouped_s", "memory_bytes", "name", "parent", "pid", "ran_s",
        "renewed_s", "start", "used_s", "vanished_s", "waited_s",
    )  # fmt: skip

    def __init__(self, pid: int, stat: Stat, group: Group, cpu_s: float) -> None:
        self.pid, self.parent, self.start = pid, stat.parent, stat.start
        self.name, self.memory_bytes = stat.name, stat.memory_bytes
        self.group = group
        self.grouped_s = self.renewed_s = self.ran_s = time.monotonic()
        self.cpu_s, self.used_s = cpu_s, 0.0
        self.waited_s = stat.waited_s  # of ended children, as the kernel tells it
        self.vanished_s = 0.0  # of that, what was charged to the children while they were seen
        self.charged_s = 0.0  # and what has been charged to this process in their stead


class Stat(NamedTuple):
    """What is used of ``/proc/PID/stat`` (proc(5))."""

    name: str
    parent: int
    start: int
    own_s: float
    waited_s: float
    memory_bytes: int


def read_stat(root: str, pid: int) -> Stat | None:
    """Read one process's file; None if it has ended or is not to be read."""
    text = _read(f"{root}/{pid}/stat", 1024)
    end = text.rfind(b")")  # the name in brackets may hold anything, brackets and spaces too
    fields = text[end + 2 :].split()
    if end < 0 or len(fields) < 22:
        return None
    return Stat(
        name=text[text.index(b"(") + 1 : end].decode("utf-8", "replace"),
        parent=int(fields[1]),
        start=int(fields[19]),
        own_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
        waited_s=(int(fields[13]) + int(fields[14])) * _TICK_S,
        memory_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def _read(path: str, most_bytes: int) -> bytes:
    """Content of a small file; empty once it is gone. Four times as quick as a file object."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most_bytes)
    except OSError:  # the process ended after its file was opened
        return b""
    finally:
        os.close(fd)


def _between(before: bytes, now: bytes) -> Sequence[int] | None:
    """The ids given out since the newest was `before`, if few enough to try them all.

    The kernel counts upwards and begins anew at the top; trying an id that is nobody's is quicker
    than listing everybody's, by far.
    """
    try:
        first, last = int(before), int(now)
    except ValueError:
        return None
    return range(first + 1, last + 1) if 0 <= last - first <= _MOST_TRIED else None


class ProcessTable:
    """All processes, and who of them ran.

    Args:
        root: where ``/proc`` is.
        cpu_s: tells the CPU seconds of a process; raises `ProcessLookupError` once it has ended.
            By default the process's own clock, which only tells about this very machine.
    """

    def __init__(self, root: Path = Path("/proc"), cpu_s: Callable[[int], float] = own_cpu_s) -> None:
        self._root = str(root)
        self._cpu_s = cpu_s
        self._table: dict[int, Process] = {}
        self._groups: dict[str, Group] = {}
        self._ran: list[Process] = []
        self._awake: dict[int, Process] = {}
        self._swept_s = float("-inf")
        self._load = ProcFile(f"{root}/loadavg", DIGITS, 128)
        self._newest = b""
        self._listed_s = float("-inf")
        self._looked = False

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Process]:
        return iter(self._table.values())

    def look(self) -> tuple[list[Process], list[Process]]:
        """Look at every process once.

        Returns:
            Those that used CPU time since the last look (see `Process.used_s`; at the first look
            nobody did), and those that have ended since.
        """
        for process in self._ran:
            process.used_s = 0.0
        ran: list[Process] = []
        gone: list[Process] = []
        cpu_s = self._cpu_s
        now_s = time.monotonic()
        sweeping = now_s - self._swept_s >= _SWEEP_S
        for pid, process in (self._table if sweeping else self._awake).items():
            try:
                so_far_s = cpu_s(pid)
            except ProcessLookupError:
                gone.append(process)
                continue
            if so_far_s != process.cpu_s:
                process.used_s = so_far_s - process.cpu_s
                process.cpu_s, process.ran_s = so_far_s, now_s
                ran.append(process)
        newest = self._newest_id()
        stirred = bool(gone) or newest != self._newest or not newest
        # Whoever ran may have waited for a child, and its id may be another process's by now.
        due = [p for p in ran if p.used_s < 0 or now_s - p.renewed_s >= _RENEW_S]
        ended = gone + [process for process in due if not self._renew(process, now_s)]
        for process in ended:
            del self._table[process.pid]
            self._awake.pop(process.pid, None)
        self._note_vanished(ended)
        for process in due:
            process.used_s += self._of_unseen_children(process)
        if ended:
            ran = [process for process in ran if self._table.get(process.pid) is process]
        listing = not self._looked or now_s - self._listed_s >= _RELIST_S
        if stirred or ended or listing:
            candidates = None if listing else _between(self._newest, newest)
            if candidates is None:
                candidates, self._listed_s = self._listed(), now_s
            self._newest = newest
            ran += self._find_new([*candidates, *(process.pid for process in ended)])
        if sweeping:
            self._swept_s = now_s
            self._awake = {p.pid: p for p in self._table.values() if now_s - p.ran_s < _AWAKE_S}
        self._looked = True
        self._ran = ran
        return ran, ended

    def _renew(self, process: Process, now_s: float) -> bool:
        """Bring what is known of a process up to date; False if its id belongs to another now."""
        stat = read_stat(self._root, process.pid)
        if stat is None or stat.start != process.start:
            return False
        process.renewed_s = now_s
        # A container's or a unit's first process is moved into its group and then runs its program.
        if stat.name != process.name or now_s - process.grouped_s > _RELIST_S:
            process.group, process.grouped_s = self._group_of(process.pid), now_s
        process.name, process.parent, process.memory_bytes = stat.name, stat.parent, stat.memory_bytes
        process.waited_s = max(process.waited_s, stat.waited_s)
        return True

    def _note_vanished(self, ended: list[Process]) -> None:
        """What ended children were charged themselves must not be charged to their parents again."""
        for process in ended:
            parent = self._table.get(process.parent)
            if parent is not None:
                parent.vanished_s += process.cpu_s + process.waited_s

    def _of_unseen_children(self, process: Process) -> float:
        """CPU seconds that children used after they were last seen, or without ever being seen.

        They show in the time that their parent waited for, in whole ticks; a parent must run to
        wait for a child, so it is enough to ask those that ran.
        """
        unseen_s = process.waited_s - process.vanished_s
        if unseen_s < process.charged_s - 4 * _TICK_S:
            process.vanished_s = process.waited_s - process.charged_s  # nobody waited for those children
            return 0.0
        fresh_s = max(0.0, unseen_s - process.charged_s)
        process.charged_s += fresh_s
        return fresh_s

    def _newest_id(self) -> bytes:
        """The id that was given out last; empty where the kernel does not tell."""
        try:
            return self._load.read().rpartition(b" ")[2]
        except OSError:
            return b""

    def _listed(self) -> Sequence[int]:
        return [int(entry) for entry in os.listdir(self._root) if entry.isdigit()]

    def _find_new(self, candidates: Iterable[int]) -> list[Process]:
        """Take up processes that began since the last look; return them, as all they used is news."""
        found = []
        for pid in candidates:
            if pid not in self._table:
                process = self._taken_up(pid)
                if process is not None and self._looked:
                    process.used_s = process.cpu_s + self._of_unseen_children(process)
                    found.append(process)
        return found

    def _taken_up(self, pid: int) -> Process | None:
        try:
            cpu_s = self._cpu_s(pid)  # first: it costs next to nothing where there is no such process
        except ProcessLookupError:
            return None
        stat = read_stat(self._root, pid)
        if stat is None:
            return None
        process = self._table[pid] = self._awake[pid] = Process(pid, stat, self._group_of(pid), cpu_s)
        # Children that ended before this process was first seen: all news if it is new itself.
        process.charged_s = 0.0 if self._looked else stat.waited_s
        return process

    def _group_of(self, pid: int) -> Group:
        path = group_path(_read(f"{self._root}/{pid}/cgroup", 8192).decode("utf-8", "replace"))
        if path not in self._groups:
            if len(self._groups) >= _MOST_GROUPS:
                self._groups.clear()
            self._groups[path] = group(path)
        return self._groups[path]
