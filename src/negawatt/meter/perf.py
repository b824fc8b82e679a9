"""RAPL through the kernel's ``power`` performance events, readable without root where perf allows.

The events are described under ``/sys/bus/event_source/devices/power`` (sysfs ABI
``sysfs-bus-event_source-devices-events``) and opened with ``perf_event_open(2)``. They are 64 bits
wide, so they do not wrap in practice.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import time
from pathlib import Path

from negawatt.errors import SensorError
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent, SensorDenied

ROOT = Path("/sys/bus/event_source/devices/power")
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_SYSCALL = {"x86_64": 298, "aarch64": 241, "i686": 336, "ppc64le": 319, "riscv64": 241}
_COMPONENTS = {"energy-pkg": "cpu/{}", "energy-ram": "dram/{}", "energy-psys": "host/psys"}
_PARTS = {"energy-cores": "cpu/{}/core", "energy-gpu": "cpu/{}/uncore"}


class PerfSensor(Sensor):
    """Energy of CPU packages and memory by perf events, one file descriptor an event and package.

    Components are named as `RaplSensor` names them.
    """

    name = "perf"

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._open: dict[str, tuple[int, float, str | None]] = {}  # component -> fd, joules a count, whole

    def read(self) -> Reading:
        if not self._open:
            self._open_all()
        start = time.monotonic()
        counters = {}
        for component, (fd, scale, part_of) in self._open.items():
            try:
                (count,) = struct.unpack("Q", os.read(fd, 8))
            except (OSError, struct.error) as exc:
                self.close()
                raise SensorError(f"the perf event of {component} cannot be read: {exc}") from exc
            counters[component] = Counter(
                energy_j=count * scale,
                resolution_j=scale,
                refresh_s=0.001,
                boundary="host" if component == "host/psys" else "chip",
                part_of=part_of,
            )
        return Reading((start + time.monotonic()) / 2, counters)

    def close(self) -> None:
        for fd, *_ in self._open.values():
            os.close(fd)
        self._open = {}

    def _open_all(self) -> None:
        try:
            kind = int((self.root / "type").read_text())
            cpus = cpu_list((self.root / "cpumask").read_text())
            events = sorted(p.name for p in (self.root / "events").iterdir() if "." not in p.name)
        except OSError as exc:
            raise SensorAbsent(
                f"the kernel offers no power events ({exc.filename} is missing)",
                remedy="on a physical machine load the driver (sudo modprobe rapl); "
                "a virtual machine gets none from its host",
            ) from exc
        except ValueError as exc:
            raise SensorError(f"{self.root} is not laid out as expected: {exc}") from exc
        try:
            for event in events:
                self._open_event(kind, event, cpus)
        except SensorError:
            self.close()
            raise
        if not self._open:
            raise SensorAbsent(f"none of the power events here is energy: {', '.join(events)}")

    def _open_event(self, kind: int, event: str, cpus: list[int]) -> None:
        template = _COMPONENTS.get(event) or _PARTS.get(event)
        if template is None:
            return
        config, scale = self._describe(event)
        for package, cpu in enumerate(cpus):  # cpumask names one CPU for every package
            component = template.format(package)
            if component in self._open:
                continue  # psys is one for the whole machine
            part_of = f"cpu/{package}" if event in _PARTS else None
            self._open[component] = (_perf_event_open(kind, config, cpu), scale, part_of)

    def _describe(self, event: str) -> tuple[int, float]:
        """The event's number, and joules for one count."""
        folder = self.root / "events"
        try:
            text = (folder / event).read_text().strip()
            unit = (folder / f"{event}.unit").read_text().strip()
            if not text.startswith("event=") or unit != "Joules":
                raise ValueError(f"{event} reads {text!r} in {unit!r}")
            return int(text.removeprefix("event="), 0), float((folder / f"{event}.scale").read_text())
        except (OSError, ValueError) as exc:
            raise SensorError(f"{folder / event} is not laid out as expected: {exc}") from exc


def cpu_list(text: str) -> list[int]:
    """CPU numbers of a kernel list such as ``0-3,8``."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _perf_event_open(kind: int, config: int, cpu: int) -> int:
    """Open one counting event on one CPU, for all processes; return the file descriptor."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise SensorAbsent(f"perf events are not supported on {platform.machine()}")
    size = 112  # PERF_ATTR_SIZE_VER5
    attributes = struct.pack("IIQ", kind, size, config).ljust(size, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    # attr, pid -1 (any process), cpu, no group, PERF_FLAG_FD_CLOEXEC
    fd: int = libc.syscall(number, attributes, -1, cpu, -1, ctypes.c_ulong(8))
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code in (errno.EACCES, errno.EPERM):
        level = PARANOID.read_text().strip() if PARANOID.exists() else "unknown"
        raise SensorDenied(
            f"perf_event_open is not permitted (kernel.perf_event_paranoid is {level})",
            remedy="sudo sysctl kernel.perf_event_paranoid=0, or sudo setcap cap_perfmon+ep on your python",
        )
    raise SensorError(f"perf_event_open failed: {os.strerror(code)}")
