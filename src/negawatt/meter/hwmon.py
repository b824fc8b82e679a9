"""Hardware monitors: energy counters and power sensors under ``/sys/class/hwmon``.

Follows Documentation/hwmon/sysfs-interface.rst of the kernel: ``energyN_input`` in microjoules,
``powerN_average`` or ``powerN_input`` in microwatts, ``inN_input`` in millivolts, ``currN_input``
in milliamperes, each with a ``_label``; ``update_interval`` in milliseconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent
from negawatt.meter.sysfs import Layout, label, number, text

ROOT = Path("/sys/class/hwmon")
_GPUS = {"amdgpu": "gpu/amd-", "i915": "gpu/intel-", "xe": "gpu/intel-", "nouveau": "gpu/nouveau-"}
"""Graphics drivers, and what their cards are called; AMD's as `negawatt.meter.amdsmi` calls them."""
_HOSTS = ("power_meter",)
"""ACPI power meters: the whole machine, behind its power supply."""


def monitors(root: Path, names: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Folders of all monitors among `names` with the names of their drivers."""
    found = [name for name in names if name.startswith("hwmon")]
    for name in sorted(found, key=lambda name: int(re.sub(r"\D", "", name) or 0)):
        folder = root / name
        if (folder / "name").exists():
            yield folder, text(folder / "name")


class HwmonEnergySensor(Sensor):
    """Energy counters of hardware monitors.

    Components: ``cpu/N`` for socket N of AMD's ``amd_energy`` driver (its cores, many and contained
    in the sockets, are left out), ``gpu/MAKER-N`` for graphics cards.
    """

    name = "hwmon energy"

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._counters = Layout(self._find)

    def read(self) -> Reading:
        start = time.monotonic()
        counters = {
            component: Counter(energy_j=number(file) * 1e-6, resolution_j=1.5e-5, refresh_s=refresh_s)
            for component, file, refresh_s in self._counters(self.root)
        }
        if not counters:
            raise SensorAbsent(f"no energy counters under {self.root}")
        return Reading((start + time.monotonic()) / 2, counters)

    def _find(self, names: Sequence[str]) -> list[tuple[str, Path, float]]:
        """Component, file and refresh of every counter."""
        found: dict[str, tuple[str, Path, float]] = {}
        for folder, driver in monitors(self.root, names):
            for file in sorted(folder.glob("energy*_input")):
                shown = label(folder / file.name.replace("_input", "_label"), file.name)
                if component := _component(driver, shown, found):
                    found[component] = (component, file, 0.001 if driver == "amd_energy" else 0.1)
        return list(found.values())


def _component(driver: str, shown: str, taken: Iterable[str]) -> str | None:
    if driver == "amd_energy":
        socket = re.fullmatch(r"Esocket(\d+)", shown)
        return f"cpu/{socket[1]}" if socket else None
    if driver in _GPUS:
        return f"{_GPUS[driver]}{sum(name.startswith(_GPUS[driver]) for name in taken)}"
    return None


class HwmonPowerSource(PowerSource):
    """Power sensors of hardware monitors: graphics cards, and ACPI's meter of the whole machine.

    Components: ``gpu/MAKER-N``, ``host/acpi-N``.
    """

    name = "hwmon power"
    polled_s = 0.1

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._meters = Layout(self._find)

    def read_power(self) -> Mapping[str, Power]:
        found = {
            component: Power(
                number(file) * 1e-6,
                accuracy=0.05,
                refresh_s=number(interval) * 1e-3 if interval is not None else 0.1,
                boundary="host" if component.startswith("host/") else "chip",
                limit_w=5000.0,
            )
            for component, file, interval in self._meters(self.root)
        }
        if not found:
            raise SensorAbsent(f"no power sensors of graphics cards or of the machine under {self.root}")
        return found

    def _find(self, names: Sequence[str]) -> list[tuple[str, Path, Path | None]]:
        """Component, file and, where there is one, file of the refresh of every power sensor."""
        found: dict[str, tuple[str, Path, Path | None]] = {}
        for folder, driver in monitors(self.root, names):
            if driver not in (*_GPUS, *_HOSTS):
                continue
            files = sorted(folder.glob("power1_average")) or sorted(folder.glob("power1_input"))
            for file in files:
                prefix = _GPUS.get(driver, "host/acpi-")
                component = f"{prefix}{sum(name.startswith(prefix) for name in found)}"
                interval = folder / "power1_average_interval"
                found[component] = (component, file, interval if interval.exists() else None)
        return list(found.values())


class JetsonPowerSource(PowerSource):
    """NVIDIA Jetson's INA3221 and INA226 monitors: volts times amperes of every labelled rail.

    Components: ``host/vdd_in`` for the module's input; rails of processor and graphics, which the
    input contains, as ``cpu/RAIL`` and ``gpu/RAIL``; other rails as ``host/vdd_in/RAIL``.
    """

    name = "jetson"
    polled_s = 0.1

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._rails = Layout(self._find)

    def read_power(self) -> Mapping[str, Power]:
        rails = {
            rail: number(volts) * number(amperes) * 1e-6 for rail, volts, amperes in self._rails(self.root)
        }
        if not rails:
            raise SensorAbsent(f"no labelled INA monitors under {self.root}; a Jetson has them")
        whole = next((rail for rail in rails if rail.upper() in ("VDD_IN", "POM_5V_IN")), None)
        return {_rail(rail, whole): _rail_power(rail, whole, watts) for rail, watts in rails.items()}

    def _find(self, names: Sequence[str]) -> list[tuple[str, Path, Path]]:
        """Name, file of volts and file of amperes of every labelled rail."""
        found: dict[str, tuple[str, Path, Path]] = {}
        for folder, driver in monitors(self.root, names):
            if not driver.startswith("ina"):
                continue
            for volts in sorted(folder.glob("in*_input")):
                channel = volts.name.removeprefix("in").removesuffix("_input")
                amperes = folder / f"curr{channel}_input"
                shown = label(folder / f"in{channel}_label", "")
                if shown and shown not in ("NC", "sum of shunt voltages") and amperes.exists():
                    found[shown] = (shown, volts, amperes)
        return list(found.values())


def _rail(rail: str, whole: str | None) -> str:
    plain = re.sub(r"\W", "_", rail.lower())
    if rail == whole:
        return "host/vdd_in"
    if "CPU" in rail.upper():
        return f"cpu/{plain}"
    if "GPU" in rail.upper():
        return f"gpu/{plain}"
    return f"host/vdd_in/{plain}" if whole else f"host/{plain}"


def _rail_power(rail: str, whole: str | None, watts: float) -> Power:
    on_chip = rail != whole and any(word in rail.upper() for word in ("CPU", "GPU"))
    inside = "host/vdd_in" if whole and rail != whole and not on_chip else None
    return Power(
        watts,
        accuracy=0.05,
        refresh_s=0.1,
        boundary="chip" if on_chip else "host",
        part_of=inside,
        limit_w=200.0,
    )
