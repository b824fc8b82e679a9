"""CPU time of a process and all its descendants, and of the machine around them.

A process's own time comes from its POSIX CPU clock (``clock_getcpuclockid``): nanoseconds, threads
that have ended included, one system call, no privilege. Children that have ended and were waited
for are in their parent's ``cutime`` and ``cstime``; those still running are found by their parents.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from negawatt.meter.footprint import FootprintTotal, Held, held
from negawatt.meter.machine import Share
from negawatt.meter.procfile import DIGITS, ProcFile, whole

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class MachineTime:
    """Cumulative seconds of all processors together, in steps of a scheduler tick.

    Attributes:
        busy_s: running any process or the kernel.
        steal_s: wanted to run, but the host gave the processor to another guest.
    """

    busy_s: float
    steal_s: float


_STAT = ProcFile("/proc/stat", b"cpu ", 512)


machine_stat = _STAT.read
"""The first lines of ``/proc/stat``; raises OSError where there is no /proc."""


def machine_time(stat: bytes | None = None) -> MachineTime:
    """The machine's times now, or by what `machine_stat` said.

    Raises:
        OSError: there is no /proc.
    """
    line = (machine_stat() if stat is None else stat).split(b"\n", 1)[0]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return MachineTime((user + nice + system + irq + softirq) * _TICK_S, steal * _TICK_S)


def asleep_s() -> float:
    """Seconds that this machine was suspended since it started; monotonic time stands still meanwhile."""
    if _BOOT_CLOCK is None:
        return 0.0
    return time.clock_gettime(_BOOT_CLOCK) - time.monotonic()


def own_cpu_s(pid: int) -> float:
    """CPU seconds of one process, all its threads, running or ended.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the clock id that clock_getcpuclockid(3) makes
    except OSError as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc


def thread_cpu_s(thread: int) -> float:
    """CPU seconds of one thread of this process, by its kernel id; 0 once it has ended."""
    try:
        return time.clock_gettime((~thread << 3) | 6)  # what pthread_getcpuclockid(3) makes
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    start: int
    waited_s: float
    zombie: bool


def _stat(pid: int) -> _Stat:
    """Fields of ``/proc/PID/stat`` (proc(5)).

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        text = whole(f"/proc/{pid}/stat")
    except OSError as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc
    fields = text[text.rindex(b")") + 2 :].split()  # the name in brackets may hold anything
    waited = (int(fields[13]) + int(fields[14])) * _TICK_S
    return _Stat(int(fields[1]), int(fields[19]), waited, fields[0] in (b"Z", b"X"))


def _children(pid: int) -> Iterator[int]:
    """Live children by ``/proc/PID/task/*/children`` (kernels with CONFIG_PROC_CHILDREN).

    Raises:
        FileNotFoundError: this kernel does not offer the file.
    """
    for thread in os.listdir(f"/proc/{pid}/task"):
        yield from map(int, whole(f"/proc/{pid}/task/{thread}/children").split())


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, parents before children; the process itself is not included."""
    found: list[int] = []
    queue = [pid]
    try:
        while queue:
            parent = queue.pop()
            try:
                children = list(_children(parent))
            except ProcessLookupError:
                continue
            except FileNotFoundError:
                if os.path.exists(f"/proc/{parent}/task"):
                    return _descendants_by_parent(pid)
                continue
            found += children
            queue += children
    except NotADirectoryError:
        return []
    return found


def running(pids: Iterable[int]) -> list[int]:
    """Those that run now; one that has ended and waits to be waited for does not."""
    found = []
    for pid in pids:
        try:
            if not _stat(pid).zombie:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def _descendants_by_parent(pid: int) -> list[int]:
    """The same from every process's parent, for kernels without the children files."""
    by_parent: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                by_parent.setdefault(_stat(int(entry)).parent, []).append(int(entry))
            except ProcessLookupError:
                continue
    found = list(by_parent.get(pid, ()))
    for child in found:  # grows while it is walked
        found += by_parent.get(child, ())
    return found


class ProcessTree:
    """CPU time of a process with its descendants, as one total that only grows.

    A descendant that was seen once stays counted when its parent ends before it (a daemon) and when
    nobody waits for it. One that starts and ends between two looks is counted by its parent's
    waited time, and missed only where nobody waits for it. Processes are told apart by id and
    start time, so that an id used again is not mistaken for its former owner.

    Raises:
        ProcessLookupError: there is no such process when the tree is made.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._root = (pid, _stat(pid).start)
        self._seen: dict[_Identity, _Times] = {}
        self._lost_s = 0.0
        self._total_s = 0.0
        self.cpu_s()

    def cpu_s(self, pids: Sequence[int] | None = None) -> float:
        """CPU seconds so far, or as they were when the `pids` were; stays once every process has ended."""
        if pids is not None:
            return self._total_s
        now = self._look()
        # What vanished since the last look is in its parent's waited time, or lost to it: keep it.
        vanished_s = sum(sum(times) for identity, times in self._seen.items() if identity not in now)
        grown_s = [times[1] - self._seen[i][1] for i, times in now.items() if i in self._seen]
        # A parent's waited time is told in whole ticks, of user and of system time: up to one of
        # each may be there and not show yet, and must not be taken for lost.
        hidden_s = 2 * _TICK_S * max(1, sum(grown > 0 for grown in grown_s))
        self._lost_s += max(0.0, vanished_s - sum(grown_s) - hidden_s)
        self._seen = now
        self._total_s = max(self._total_s, self._lost_s + sum(sum(times) for times in now.values()))
        return self._total_s

    def pids(self) -> list[int]:
        """Its processes that run now, by one walk; `cpu_s` need not walk again if it is given them."""
        self.cpu_s()
        return [pid for pid, _ in self._seen]

    def held(self, pids: Sequence[int]) -> Held:
        """What these processes of it hold now."""
        return held(pids)

    def footprint(self) -> FootprintTotal:
        """Adds up what the tree holds from now on."""
        return FootprintTotal(_share(self.pid), self.pid)

    def _look(self) -> dict[_Identity, _Times]:
        """Own and waited CPU seconds of every live process of the tree."""
        now: dict[_Identity, _Times] = {}
        for identity in (self._root, *self._seen):
            if identity in now:
                continue
            pid, start = identity
            try:
                if _stat(pid).start != start:
                    continue
            except ProcessLookupError:
                continue
            for member in (pid, *descendants(pid)):
                try:
                    stat = _stat(member)
                    now[member, stat.start] = (own_cpu_s(member), stat.waited_s)
                except ProcessLookupError:
                    continue
        return now


class Trees:
    """Several process trees, none of which is part of another, measured as one.

    Args:
        pids: their roots, at least one.

    Raises:
        ProcessLookupError: one of them does not run.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._trees = [ProcessTree(pid) for pid in pids]

    def pids(self) -> list[int]:
        """Their processes that run now, the first root first."""
        return [pid for tree in self._trees for pid in tree.pids()]

    def cpu_s(self, pids: Sequence[int] | None = None) -> float:
        """CPU seconds of all so far, or as they were when the `pids` were."""
        return sum(tree.cpu_s(pids) for tree in self._trees)

    def held(self, pids: Sequence[int]) -> Held:
        """What these processes of them hold now."""
        return held(pids)

    def footprint(self) -> FootprintTotal:
        """Adds up what they hold from now on."""
        return self._trees[0].footprint()


_Identity = tuple[int, int]
"""Process id and start time in ticks since the machine started."""

_Times = tuple[float, float]
"""CPU seconds of the process itself, and of the children it waited for."""


class OwnTree:
    """CPU time of this very process, its ended children, and those still running: cheap to read."""

    def pids(self) -> Sequence[int]:
        """This process and its descendants, some of which may have ended; by one walk at most."""
        return _own_pids()

    def cpu_s(self, pids: Sequence[int] | None = None) -> float:
        """CPU seconds so far, of the `pids` if they have just been walked to."""
        return _children_s(self.pids() if pids is None else pids) + time.process_time()

    def held(self, pids: Sequence[int]) -> Held:
        """What these processes of it hold now."""
        return held(pids[1:], own=True)

    def footprint(self) -> FootprintTotal:
        """Adds up what the tree holds from now on."""
        pid = os.getpid()
        return FootprintTotal(_share(pid), pid)


class Children:
    """CPU time of this process's children alone, those included that nobody waits for if seen.

    Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._tree = ProcessTree(os.getpid())
        self._lock = threading.Lock()

    def pids(self) -> Sequence[int]:
        """This process and its descendants that run now, by one walk."""
        with self._lock:
            return self._tree.pids()

    def cpu_s(self, pids: Sequence[int] | None = None) -> float:
        """CPU seconds so far, of the `pids` if they have just been walked to."""
        with self._lock:
            pids = self._tree.pids() if pids is None else pids
            exact_s = _children_s(pids)
            # The tree also knows of processes that vanished unwaited, but of the others only whole ticks.
            return max(exact_s, self._tree.cpu_s(pids) - time.process_time())

    def held(self, pids: Sequence[int]) -> Held:
        """What the children among these hold now, and the drive bytes of all: this process moves none."""
        return held(pids[1:], own=False)

    def footprint(self) -> FootprintTotal:
        """Adds up what the children hold from now on."""
        return FootprintTotal(_share(os.getpid()), os.getpid())


@lru_cache(maxsize=64)
def _share(pid: int) -> Share:
    """What a process may use, read once; of one that has ended meanwhile, what this one may."""
    try:
        return Share.of(pid)
    except OSError:
        return Share.of()


def _children_s(pids: Sequence[int]) -> float:
    """CPU seconds of children that ended and were waited for, and of all that run, this process first."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_s = ended.ru_utime + ended.ru_stime
    for pid in pids[1:]:
        try:
            total_s += own_cpu_s(pid) + _stat(pid).waited_s
        except ProcessLookupError:
            continue
    return total_s


class _Known(NamedTuple):
    newest: bytes
    pids: Sequence[int]


_known = _Known(b"", ())
_LOADAVG = ProcFile("/proc/loadavg", DIGITS, 128)


@cache
def _tells_newest() -> bool:
    """Whether ``/proc/loadavg`` is the kernel's own: what containers mount over it may be seconds old."""
    try:
        return os.stat("/proc/loadavg").st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def _own_pids() -> Sequence[int]:
    """This process and its descendants.

    They are those of last time, or fewer, unless an id was given out since, to a process or a thread
    of anybody: whoever is a descendant now was one from its start.
    """
    global _known
    pid = os.getpid()
    newest = _LOADAVG.read().rpartition(b" ")[2] if _tells_newest() else b""
    if newest and newest == _known.newest and _known.pids[0] == pid:
        return _known.pids
    pids = (pid, *descendants(pid)) if _has_children() else (pid,)
    _known = _Known(newest, pids)
    return pids


def _has_children() -> bool:
    """Whether this process has any child, running or waiting to be waited for; reaps none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
