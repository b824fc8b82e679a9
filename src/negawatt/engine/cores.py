"""`Cores`: the processors that a process may use, how they differ, and where an engine's threads can be kept.

Read from what Linux shows under ``/sys/devices`` (Documentation/ABI/testing/sysfs-devices-system-cpu).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from negawatt.errors import EngineError
from negawatt.meter.perf import cpu_list

CHOICES = ("default", "compact", "performance", "efficiency")
"""Where threads may be kept: wherever the kernel puts them; on as many processors as there are threads, on as
few sockets as possible and near each other; on the fast or on the thrifty cores of a hybrid processor."""
SLOW = 0.75
"""A core of less than this share of the largest capacity is one for efficiency. Cores of one kind differ by
less: some of them are allowed a higher clock."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A logical processor as the kernel numbers them.

    Attributes:
        number: the kernel's.
        package: the socket that it sits in.
        cluster: those that share the last cache, or what the kernel calls a cluster.
        core: those that are threads of one core.
        fast: False for the thrifty cores of a hybrid processor.
    """

    number: int
    package: str
    cluster: str
    core: str
    fast: bool = True

    def distance(self, other: Processor) -> int:
        """0 within a core, 1 within a cluster, 2 within a socket, 3 between sockets."""
        if self.package != other.package:
            return 3
        return 0 if self.core == other.core else 1 if self.cluster == other.cluster else 2


@dataclass(frozen=True)
class Cores:
    """Some processors; none where their layout cannot be read, and then there is nothing to choose."""

    processors: tuple[Processor, ...] = ()

    @classmethod
    def here(cls, root: Path = Path("/"), allowed: Collection[int] | None = None) -> Cores:
        """The processors that this process may use.

        Args:
            root: where ``sys`` is.
            allowed: their numbers; by default what the kernel lets this process use.
        """
        if allowed is None:
            allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        devices = root / "sys/devices"
        folders = {n: devices / f"system/cpu/cpu{n}" for n in sorted(allowed)}
        found = {n: _processor(n, folder) for n, folder in folders.items()}
        thrifty = _thrifty(devices, folders)
        known = [each for each in found.values() if each is not None]
        if len(known) < len(found):
            return cls()
        return cls(
            tuple(Processor(p.number, p.package, p.cluster, p.core, p.number not in thrifty) for p in known)
        )

    @property
    def differ(self) -> bool:
        """Whether there are cores of two kinds."""
        return len({p.fast for p in self.processors}) > 1

    def where(self, choice: str, threads: int) -> frozenset[int] | None:
        """Numbers of the processors on which a choice keeps so many threads; None for all.

        Raises:
            EngineError: there are no such processors here, or fewer than threads.
        """
        if choice == "default":
            return None
        if not self.processors:
            raise EngineError(f"the cores of this machine cannot be told apart, so none are {choice}")
        if choice == "compact":
            group = self._nearest_first()
        else:
            if not self.differ:
                raise EngineError(
                    f"the cores that may be used here are all alike, so none are {choice} cores"
                )
            group = [p for p in self.processors if p.fast == (choice == "performance")]
        if threads > len(group):
            raise EngineError(
                f"{threads} threads do not fit on {len(group)} {choice} cores; use fewer threads"
            )
        return frozenset(p.number for p in (group[:threads] if choice == "compact" else group))

    def possible(self, threads: int) -> tuple[str, ...]:
        """The choices that can be run, and that keep so many threads from anything."""
        found = ["default"]
        for choice in CHOICES[1:]:
            with suppress(EngineError):
                if len(self.where(choice, threads) or ()) < len(self.processors):
                    found.append(choice)
        return tuple(found)

    def offered(self, threads: int) -> tuple[str, ...]:
        """Those that can matter: ``compact`` only where some pairs of cores are nearer than others."""
        distances = {
            a.distance(b) for i, a in enumerate(self.processors) for b in self.processors[:i]
        }  # fmt: skip
        near = threads > 1 and len(distances) > 1
        return tuple(c for c in self.possible(threads) if c != "compact" or near)

    def counts(self) -> tuple[int, ...]:
        """Numbers of threads worth trying: 1, all, and where they differ the cores of one kind or socket."""
        if not self.processors:
            return ()
        everything = len(self.processors)
        groups = [{(p.package, p.core) for p in self.processors}]  # a thread on each core
        groups += [{(p.package, p.core) for p in self.processors if p.fast == fast} for fast in (True, False)]
        per_package = Counter(package for package, _ in groups[0])
        found = {1, everything, *map(len, groups), *per_package.values()}
        return tuple(sorted(n for n in found if n))

    def _nearest_first(self) -> list[Processor]:
        """Sockets with most processors first; in each its fast cores, one cluster after the other, and second
        threads of cores only when each has one."""
        sizes = Counter(p.package for p in self.processors)
        clusters = Counter((p.package, p.cluster) for p in self.processors)
        rank: dict[int, int] = {}
        seen: Counter[tuple[str, str]] = Counter()
        for p in self.processors:
            rank[p.number] = seen[p.package, p.core]
            seen[p.package, p.core] += 1
        return sorted(
            self.processors,
            key=lambda p: (
                -sizes[p.package], p.package, rank[p.number], not p.fast, -clusters[p.package, p.cluster],
                p.cluster, p.number,
            ),
        )  # fmt: skip


def confine(choice: str, threads: int | None) -> None:
    """Keep all threads of this process, and those that they start, where a choice says.

    Raises:
        EngineError: there are no such processors here, or the kernel refuses.
    """
    numbers = Cores.here().where(choice, threads or 1)
    if numbers is None:
        return
    try:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread), numbers)
    except OSError as exc:
        raise EngineError(f"threads cannot be kept on {choice} cores: {exc.strerror or exc}") from exc


def _processor(number: int, folder: Path) -> Processor | None:
    package, core = (
        _text(folder / "topology/physical_package_id"),
        _text(folder / "topology/thread_siblings_list"),
    )
    if not package or not core:
        return None
    cluster = _text(folder / "cache/index3/shared_cpu_list") or _text(folder / "topology/cluster_id")
    return Processor(number, package, cluster, core)


def _thrifty(devices: Path, folders: Mapping[int, Path]) -> set[int]:
    """Numbers of the thrifty cores: Intel's kernels list them, others tell the capacity of each core."""
    if listed := _text(devices / "cpu_atom/cpus"):
        return set(cpu_list(listed))
    told = {n: _text(folder / "cpu_capacity") for n, folder in folders.items()}
    capacities = {n: int(text) for n, text in told.items() if text.isdigit()}
    largest = max(capacities.values(), default=0)
    return {n for n, capacity in capacities.items() if capacity < SLOW * largest}


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
