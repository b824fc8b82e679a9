"""Intel's and AMD's running average power limit counters, as the Linux powercap tree shows them.

Follows Documentation/power/powercap/powercap.rst of the kernel: every zone folder holds ``name``,
``energy_uj`` and ``max_energy_range_uj``; a package zone contains ``core``, ``uncore`` and
``dram`` zones; ``psys`` is the whole platform.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negawatt.errors import SensorError
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent, SensorDenied
from negawatt.meter.sysfs import Layout, number, text

ROOT = Path("/sys/class/powercap")
REFRESH_S = 0.001
RESOLUTION_J = 6.2e-5
"""Of the coarsest common energy unit, 2⁻¹⁴ J; the files print microjoules."""


class RaplSensor(Sensor):
    """Energy of CPU packages and memory by the powercap files.

    Components: ``cpu/N`` for package N, ``dram/N`` its memory (not part of the package's figure),
    ``cpu/N/core`` and ``cpu/N/uncore`` as parts of the package, ``host/psys`` for the platform.
    The memory-mapped twin (``intel-rapl-mmio``) counts the same joules and is left out.
    """

    name = "rapl"

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._zones = Layout(self._open)

    def read(self) -> Reading:
        zones = self._zones(self.root)
        if not zones:
            raise SensorAbsent(
                f"no RAPL zones under {self.root}",
                remedy="on a physical machine load the driver (sudo modprobe intel_rapl_msr); "
                "a virtual machine gets none from its host",
            )
        start = time.monotonic()
        counters = {zone.component: zone.read() for zone in zones}
        return Reading((start + time.monotonic()) / 2, counters)

    def _open(self, listed: Sequence[str]) -> list[_Zone]:
        zones: list[_Zone] = []
        names: dict[str, str] = {}  # zone id to component, parents first
        for zone in sorted((n for n in listed if "-rapl:" in n), key=lambda name: name.split(":")):
            folder = self.root / zone
            try:
                label = text(folder / "name")
            except SensorDenied:
                raise
            except SensorError:
                continue  # unplugged between listing and reading
            component, part_of = zone_component(label, folder.name, names)
            names[folder.name] = component
            range_j = number(folder / "max_energy_range_uj") * 1e-6
            zones.append(_Zone(folder / "energy_uj", component, part_of, range_j))
        return zones


def zone_component(label: str, zone_id: str, names: dict[str, str]) -> tuple[str, str | None]:
    """The component a zone measures, and the one that contains it."""
    if label == "psys":
        return "host/psys", None
    if package := re.fullmatch(r"package-(\d+)(?:-die-(\d+))?", label):
        number, die = package.groups()
        return f"cpu/{number}" if die is None else f"cpu/{number}.{die}", None
    parent = names.get(zone_id.rpartition(":")[0])
    if label == "dram":
        where = parent.partition("/")[2] if parent else zone_id.rpartition(":")[2]
        return f"dram/{where}", None
    return (f"{parent}/{label}", parent) if parent else (f"cpu/{label}", None)


@dataclass(frozen=True, slots=True)
class _Zone:
    file: Path
    component: str
    part_of: str | None
    range_j: float

    def read(self) -> Counter:
        return Counter(
            energy_j=number(self.file) * 1e-6,
            range_j=self.range_j,
            resolution_j=RESOLUTION_J,
            refresh_s=REFRESH_S,
            boundary="host" if self.component == "host/psys" else "chip",
            part_of=self.part_of,
        )
