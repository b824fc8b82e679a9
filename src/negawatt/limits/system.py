"""`System`: the ceilings of this machine, and reading and writing them by the names of their places."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from negawatt.errors import SensorError
from negawatt.limits import gpu
from negawatt.limits.ceiling import Ceiling, Kind
from negawatt.limits.cpu import CPUFREQ, POWERCAP, packages, policies
from negawatt.limits.gpu import Gpus
from negawatt.meter.sensor import SensorDenied
from negawatt.meter.sysfs import number

FILE = re.compile(
    rf"{POWERCAP}/[a-z-]+-rapl:\d+/(?:constraint_\d+_power_limit_uw|enabled)"
    rf"|{CPUFREQ}/policy\d+/scaling_max_freq"
)
"""Places that are files. What lies in a journal may be written by root: nothing else is."""


def put(file: Path, value: int) -> None:
    """Write a number into a file that is there.

    Raises:
        OSError: it is refused.
    """
    fd = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)  # sysfs takes no notice of truncation
    try:
        os.write(fd, b"%d\n" % value)
    finally:
        os.close(fd)


class System:
    """Args:
    root: where ``sys`` is.
    pynvml: a module with NVML's Python interface; None imports ``pynvml`` on first use.
    put: writes a number into a file.
    """

    def __init__(
        self, root: Path = Path("/"), pynvml: Any = None, put: Callable[[Path, int], None] = put
    ) -> None:
        self.root = root
        self._gpus, self._put = Gpus(pynvml), put

    def ceilings(self, kind: Kind, device: str) -> list[Ceiling]:
        """What can be lowered for a device: ``cpu`` is all packages, or all groups of processors that share a
        clock; any other name is of NVIDIA's GPUs, of that number if it ends in one.

        Raises:
            SensorAbsent: there is nothing.
            SensorDenied: it may not be set; ``remedy`` tells what would allow it.
            SensorError: it cannot be read.
        """
        if device == "cpu":
            return packages(self.root) if kind == "power" else policies(self.root)
        return self._gpus.ceilings(kind, gpu.number_of(device))

    def read(self, place: str) -> int | None:
        """What stands in a place; None where that cannot be read.

        Raises:
            SensorError: it is no place, or cannot be read.
        """
        return self._gpus.read(place) if gpu.PLACE.fullmatch(place) else number(self._file(place))

    def write(self, place: str, value: int | None) -> None:
        """Put a value into a place; None is what is there when nobody has set anything.

        Raises:
            SensorDenied, SensorError: it is no place, or refuses.
        """
        if gpu.PLACE.fullmatch(place):
            return self._gpus.write(place, value)
        file = self._file(place)
        if value is None or value < 0:
            raise SensorError(f"{value} cannot be written to {file}")
        try:
            self._put(file, value)
        except PermissionError as exc:
            if os.geteuid():
                raise SensorDenied(f"{file} refuses {value}: {exc.strerror}", remedy="run as root") from exc
            raise SensorDenied(
                f"{file} refuses {value} even to root: its firmware has locked it, or a container may not"
            ) from exc
        except OSError as exc:
            raise SensorError(f"{file} refuses {value}: {exc.strerror or exc}") from exc

    def _file(self, place: str) -> Path:
        if not FILE.fullmatch(place):
            raise SensorError(f"{place!r} is no place of a limit")
        return self.root / place

    def close(self) -> None:
        self._gpus.close()
