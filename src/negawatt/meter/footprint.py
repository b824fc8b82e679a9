"""What a process tree holds in memory and moves to and from drives, and the joules that models give it.

Only for where no counter tells: memory and drives are then estimated beside the processor, as
bands over published figures.

- Memory: watts a gigabyte resident, 0.284 (Boavizta), 0.375 (CodeCarbon) to 0.392 (Cloud Carbon
  Footprint). It flows whether the memory is used or not. How many bytes move between processor and
  memory is told by no file of the kernel, so their joules are not in it.
- Drives: joules a byte of solid-state drives, from their makers' watts and bytes a second when data
  moves in sequence: 0.5 nJ (a PCIe 5 drive: 7 W at 14.5 GB/s) to 7.2 nJ (SATA, WD Blue: 2.1 to
  3.8 W at 530 to 560 MB/s). A hard disk spins all the time: bytes do not tell its joules.
- The network is left out: ``/proc`` counts its bytes by machine, not by process, and the published
  joules a byte are those of the machines in between.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

from negawatt.energy import Energy
from negawatt.meter.cputime import CpuPower
from negawatt.meter.machine import Share
from negawatt.meter.procfile import DIGITS, ProcFile, whole

MEMORY_W_PER_GB = (0.284, 0.375, 0.392)
DISK_J_PER_BYTE = (0.5e-9, 2.5e-9, 7.2e-9)
_GB = 2**30
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory held and bytes moved over a stretch of time.

    Attributes:
        byte_s: bytes resident times seconds, pages that processes share counted once.
        low_byte_s, high_byte_s: the ends of what that may be: the least that was seen at both ends
            of every stretch between two looks, and the processes' own peaks.
        duration_s: seconds.
        read_bytes, written_bytes: to and from drives; None where that may not be read.
    """

    byte_s: float = 0.0
    low_byte_s: float = 0.0
    high_byte_s: float = 0.0
    duration_s: float = 0.0
    read_bytes: int | None = 0
    written_bytes: int | None = 0

    def memory_energy(self) -> Energy:
        """Joules of the memory that was resident."""
        low, usual, high = (w / _GB for w in MEMORY_W_PER_GB)
        reason = (
            "memory resident × 0.284 to 0.392 W/GB (Boavizta, CodeCarbon, Cloud Carbon Footprint), "
            "without what moved"
        )
        return Energy.estimated(
            self.byte_s * usual,
            min(self.low_byte_s, self.byte_s) * low,
            max(self.high_byte_s, self.byte_s) * high,
            reason,
        )

    def disk_energy(self) -> Energy | None:
        """Joules of the bytes that drives read and wrote, or None where no model applies."""
        if self.read_bytes is None or self.written_bytes is None or not solid_state():
            return None
        low, usual, high = (j * (self.read_bytes + self.written_bytes) for j in DISK_J_PER_BYTE)
        return Energy.estimated(
            usual, low, high, "drive bytes × 0.5 to 7.2 nJ (makers of solid-state drives)"
        )

    def beside(self, power: CpuPower, components: Mapping[str, Energy]) -> dict[str, Energy]:
        """Components to add where the model stands in for the processors' counters.

        What a counter tells, or the model's own watts hold already, is left out.
        """
        if "cpu" not in components:
            return {}
        found = {}
        if "dram" not in power.covers and not any(name.startswith("dram/") for name in components):
            found["dram"] = self.memory_energy()
        if "disk" not in power.covers and (disk := self.disk_energy()) is not None:
            found["disk"] = disk
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "resident_bytes": round(self.byte_s / self.duration_s) if self.duration_s > 0 else None,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "not_modelled": list(self.not_modelled),
        }

    @property
    def not_modelled(self) -> tuple[str, ...]:
        """What no estimate holds, and why."""
        found = ["bytes moved to and from memory: the kernel does not count them"]
        if self.read_bytes is None:
            found.append("bytes moved to and from drives: those of another user's processes may not be read")
        elif not solid_state():
            found.append(
                "bytes moved to and from drives: a drive here spins, or does not say that it does not"
            )
        return (*found, "bytes moved over the network: the kernel does not count them by process")


_HELD = re.compile(
    rb"VmHWM:\s+(\d+) kB\nVmRSS:\s+(\d+) kB\nRssAnon:.*\nRssFile:\s+(\d+) kB\nRssShmem:\s+(\d+) kB"
)
_MOVED = re.compile(rb"\nread_bytes: (\d+)\nwrite_bytes: (\d+)\ncancelled_write_bytes: (\d+)")
_PAGES = re.compile(rb"\d+ (\d+) (\d+) ")
_DRIVES = ("nvme*n*", "sd*", "hd*", "vd*", "xvd*", "mmcblk*")


@cache
def solid_state(root: Path = Path("/sys/block")) -> bool:
    """Whether every drive of this machine says that it does not spin; many virtual ones say it does."""
    said = [path for name in _DRIVES for path in root.glob(f"{name}/queue/rotational")]
    return bool(said) and all(path.read_text().strip() == "0" for path in said)


class Held(NamedTuple):
    """What the kernel says of a process tree's memory and drive bytes at one moment, not parsed yet.

    Attributes:
        at_s: monotonic time.
        memory: ``/proc/PID/status`` of every process whose memory counts, but for this very one.
        moved: ``/proc/PID/io`` of every process; None of one whose file may not be read.
        own: ``/proc/self/statm`` where the memory of this very process counts.
        own_peak_bytes: no more was ever resident of it; may be what it inherited.
        ended_faults: page faults of its children that ended and were waited for: more than before,
            if another has.
        ended_peak_bytes: the most that the largest of them ever had resident.
    """

    at_s: float
    memory: Sequence[bytes]
    moved: Sequence[bytes | None]
    own: bytes | None = None
    own_peak_bytes: int = 0
    ended_faults: int = 0
    ended_peak_bytes: int = 0


_STATM = ProcFile("/proc/self/statm", DIGITS)
_IO = ProcFile("/proc/self/io", b"rchar:")


def held(pids: Sequence[int], *, own: bool | None = None) -> Held:
    """What processes hold now.

    Args:
        pids: of those that run, but for this very one.
        own: whether the memory of this very process counts as well; its drive bytes do, as those of
            children that it waited for are among them. None for the processes of another.
    """
    memory = [_read(f"/proc/{pid}/status") or b"" for pid in pids]
    moved = [_read(f"/proc/{pid}/io") for pid in pids]
    if own is None:
        return Held(time.monotonic(), memory, moved)
    moved.append(_own(_IO))
    ended = getrusage(RUSAGE_CHILDREN)
    faults, peak_bytes = ended.ru_minflt, ended.ru_maxrss * 1024
    if not own:
        return Held(time.monotonic(), memory, moved, None, 0, faults, peak_bytes)
    own_peak_bytes = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    return Held(time.monotonic(), memory, moved, _own(_STATM), own_peak_bytes, faults, peak_bytes)


class FootprintTotal:
    """The footprint of a process tree since it was first looked at; grows with every look.

    Between two looks memory is taken to go along a straight line. Where a child ended in between, all
    that is known is its peak: the value is then halfway between the least and the most. What is
    resident cannot be more than the tree's share of the machine allows.

    Args:
        share: what the tree may use.
        root: its first process.
    """

    _total = Footprint()
    _last: _Seen | None = None
    _begun: tuple[int, int] | None = None  # bytes read and written before the first look

    def __init__(self, share: Share, root: int) -> None:
        self.share, self._root = share, root
        self._looks: list[Held] = []  # not worked out yet

    def note(self, held: Held) -> None:
        """Add a look; what it means is worked out when the total is asked for."""
        self._looks.append(held)

    def total(self) -> Footprint:
        """The total up to the last look."""
        looks, self._looks = self._looks, []
        for look in looks:
            self._add(look)
        return self._total

    def _add(self, look: Held) -> None:
        now, last = self._seen(look), self._last
        self._last = now
        if last is None:
            self._begun = _moved(look.moved)
            if self._begun is None:
                self._total = replace(self._total, read_bytes=None, written_bytes=None)
            return
        total, step_s = self._total, now.at_s - last.at_s
        ended = look.ended_faults > last.ended_faults
        if look.own is not None and look.ended_peak_bytes <= now.own_peak:
            ended = False  # a child's peak may be what it inherited; only more than that is its own
        peak = look.ended_peak_bytes if ended else 0
        least, most = min(now.resident, last.resident), max(now.resident, last.resident)
        most = max(most, min(now.peak + peak, self.share.memory_bytes))
        read, written = total.read_bytes, total.written_bytes
        moved = _moved(look.moved)
        if moved is None or self._begun is None or read is None or written is None:
            read = written = None
        else:  # they do not shrink when a process ends
            read = max(read, moved[0] - self._begun[0])
            written = max(written, moved[1] - self._begun[1])
        self._total = Footprint(
            total.byte_s + step_s * ((least + most) / 2 if ended else (now.resident + last.resident) / 2),
            total.low_byte_s + step_s * least,
            total.high_byte_s + step_s * most,
            total.duration_s + step_s,
            read,
            written,
        )

    def _seen(self, look: Held) -> _Seen:
        each = [memory(text) for text in look.memory]
        own_peak = 0
        if look.own and (found := _PAGES.match(look.own)):
            resident, shared = int(found[1]) * _PAGE, int(found[2]) * _PAGE
            own_peak = look.own_peak_bytes
            if own_peak <= _inherited_peak(self._root):
                # What was resident at most by now was not inherited, and is at least what it was then.
                own_peak = max(resident, min(own_peak, _peak(self._root) or own_peak))
            each.append((resident, shared, own_peak))
        own = sum(resident - shared for resident, shared, _ in each)
        shared = max((shared for _, shared, _ in each), default=0)
        most = self.share.memory_bytes
        peak = sum(peak for _, _, peak in each)
        return _Seen(look.at_s, min(own + shared, most), min(peak, most), own_peak, look.ended_faults)


class _Seen(NamedTuple):
    """A look, worked out: bytes resident, and the most that each process ever had, summed."""

    at_s: float
    resident: int
    peak: int
    own_peak: int
    ended_faults: int


@cache
def _inherited_peak(pid: int) -> int:
    """The peak that a process's resource usage told at first, where that was not its own; 0 if it was.

    The kernel keeps it when a process begins another program, whoever's memory that was before.
    """
    peak = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    return peak if peak > _peak(pid) else 0


def _peak(pid: int) -> int:
    return memory(_read(f"/proc/{pid}/status") or b"")[2]


def _moved(texts: Iterable[bytes | None]) -> tuple[int, int] | None:
    """Bytes read and written so far; None where that may not be read of a process."""
    read = written = 0
    for text in texts:
        if text is None:
            return None
        if found := _MOVED.search(text):
            read += int(found[1])
            written += int(found[2]) - int(found[3])  # deleted before it was written
    return read, written


def memory(status: bytes) -> tuple[int, int, int]:
    """Bytes resident, those of them that may be shared with others, and the peak, by ``/proc/PID/status``.

    All 0 of a process that has ended; one that waits to be waited for has no memory of its own.
    """
    found = _HELD.search(status)
    if found is None:
        return 0, 0, 0
    peak, resident, file, shm = (int(kib) * 1024 for kib in found.groups())
    return resident, file + shm, peak


def _own(file: ProcFile) -> bytes | None:
    try:
        return file.read()
    except OSError:
        return None


def _read(path: str) -> bytes | None:
    """A process's file: empty once it has ended, None where it may not be read."""
    try:
        return whole(path)
    except (ProcessLookupError, FileNotFoundError):
        return b""
    except OSError:
        return None
