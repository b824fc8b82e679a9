"""A laptop on its battery: what leaves the battery is what the whole machine draws.

Follows Documentation/power/power_supply_class.rst of the kernel: microwatts, microvolts and
microamperes under ``/sys/class/power_supply``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import SensorAbsent
from negawatt.meter.sysfs import number, text

ROOT = Path("/sys/class/power_supply")


class BatterySource(PowerSource):
    """Power drawn from batteries, as ``host/battery-N``; only while they discharge."""

    name = "battery"
    polled_s = 1.0

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def read_power(self) -> Mapping[str, Power]:
        batteries = [
            folder
            for folder in sorted(self.root.glob("*"))
            if (folder / "type").exists()
            and text(folder / "type") == "Battery"
            # Batteries of mice and keyboards say so.
            and not ((folder / "scope").exists() and text(folder / "scope") == "Device")
        ]
        if not batteries:
            raise SensorAbsent(f"no battery under {self.root}")
        draining = [b for b in batteries if text(b / "status") == "Discharging"]
        if not draining:
            raise SensorAbsent(
                "the machine runs on mains, which the battery cannot measure",
                remedy="unplug the charger to measure the whole machine by its battery",
            )
        return {
            f"host/battery-{n}": Power(
                _power_w(folder), accuracy=0.05, refresh_s=5.0, boundary="host", limit_w=300.0
            )
            for n, folder in enumerate(draining)
        }


def _power_w(folder: Path) -> float:
    if (folder / "power_now").exists():
        return abs(number(folder / "power_now")) * 1e-6
    return abs(number(folder / "current_now")) * number(folder / "voltage_now") * 1e-12
