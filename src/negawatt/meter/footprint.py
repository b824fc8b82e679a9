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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from negawatt.energy import Energy
from negawatt.meter.cputime import CpuPower
from negawatt.meter.machine import Share

MEMORY_W_PER_GB = (0.284, 0.375, 0.392)
DISK_J_PER_BYTE = (0.5e-9, 2.5e-9, 7.2e-9)
_GB = 2**30


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

    def __sub__(self, earlier: Footprint) -> Footprint:
        def moved(now: int | None, then: int | None) -> int | None:
            return None if now is None or then is None else now - then

        return Footprint(
            self.byte_s - earlier.byte_s,
            self.low_byte_s - earlier.low_byte_s,
            self.high_byte_s - earlier.high_byte_s,
            self.duration_s - earlier.duration_s,
            moved(self.read_bytes, earlier.read_bytes),
            moved(self.written_bytes, earlier.written_bytes),
        )

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
_DRIVES = ("nvme*n*", "sd*", "hd*", "vd*", "xvd*", "mmcblk*")


@cache
def solid_state(root: Path = Path("/sys/block")) -> bool:
    """Whether every drive of this machine says that it does not spin; many virtual ones say it does."""
    said = [path for name in _DRIVES for path in root.glob(f"{name}/queue/rotational")]
    return bool(said) and all(path.read_text().strip() == "0" for path in said)


class FootprintTotal:
    """The footprint of a process tree since it was first looked at; grows with every look.

    Between two looks memory is taken to go along a straight line. Where a child ended in between, all
    that is known is its peak: the value is then halfway between the least and the most. What is
    resident cannot be more than the tree's share of the machine allows.

    Args:
        pids: tells the processes, the root first.
        root_holds: whether the root's memory counts; its bytes always do, because those of children
            that were waited for are among them.
        share: tells what they may use.
        ended: tells the peak of the largest child that ended since it was last asked; 0 without one.
    """

    def __init__(
        self,
        pids: Callable[[], Sequence[int]],
        share: Callable[[], Share],
        ended: Callable[[], int] = lambda: 0,
        root_holds: bool = True,
    ) -> None:
        self._pids, self._share, self._ended, self._root_holds = pids, share, ended, root_holds
        self._total = Footprint()
        self._last: tuple[float, int] | None = None  # monotonic time, bytes

    @property
    def share(self) -> Share:
        """What the tree may use of the machine."""
        return self._share()

    def look(self) -> Footprint:
        """The total up to now."""
        now_s = time.monotonic()
        pids = self._pids()
        resident, peak = self._resident(pids if self._root_holds else pids[1:])
        ended = self._ended()
        last_s, last = self._last or (now_s, resident)
        self._last = (now_s, resident)
        step_s, total = now_s - last_s, self._total
        least, most = min(resident, last), max(resident, last, min(peak + ended, self._share().memory_bytes))
        read, written = self._moved(pids)
        self._total = Footprint(
            total.byte_s + step_s * ((least + most) / 2 if ended else (resident + last) / 2),
            total.low_byte_s + step_s * least,
            total.high_byte_s + step_s * most,
            total.duration_s + step_s,
            read,
            written,
        )
        return self._total

    def _resident(self, pids: Iterable[int]) -> tuple[int, int]:
        """Bytes resident now, and the most that each process ever had, summed."""
        own = shared = peak = 0
        for pid in pids:
            resident, common, most_yet = memory(pid)
            own += resident - common
            shared = max(shared, common)
            peak += most_yet
        most = self._share().memory_bytes
        return min(own + shared, most), min(peak, most)

    def _moved(self, pids: Iterable[int]) -> tuple[int | None, int | None]:
        before_read, before_written = self._total.read_bytes, self._total.written_bytes
        if before_read is None or before_written is None:
            return None, None
        read = written = 0
        for pid in pids:
            try:
                text = _read(f"/proc/{pid}/io")
            except (ProcessLookupError, FileNotFoundError):
                continue  # it has ended
            except OSError:
                return None, None
            if found := _MOVED.search(text):
                read += int(found[1])
                written += int(found[2]) - int(found[3])  # deleted before it was written
        return max(before_read, read), max(before_written, written)


def memory(pid: int) -> tuple[int, int, int]:
    """Bytes resident, those of them that may be shared with others, and the peak; 0 once it has ended."""
    try:
        text = _read(f"/proc/{pid}/status")
    except OSError:
        return 0, 0, 0
    found = _HELD.search(text)  # a zombie has no memory of its own, and no such lines
    if found is None:
        return 0, 0, 0
    peak, resident, file, shm = (int(kib) * 1024 for kib in found.groups())
    return resident, file + shm, peak


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
