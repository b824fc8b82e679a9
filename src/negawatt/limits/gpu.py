"""Ceilings of NVIDIA's GPUs: the power limit and the locked clocks, by NVML.

Not yet run on that hardware: tested against a double of the ``pynvml`` module only.
"""

from __future__ import annotations

import os
import re
from typing import Any

from negawatt.errors import SensorError
from negawatt.limits.ceiling import Ceiling, Kind
from negawatt.meter.nvml import Devices
from negawatt.meter.sensor import SensorAbsent, SensorDenied

PLACE = re.compile(r"nvml/([A-Za-z0-9-]{1,96})/(power|clock)")
"""Where a GPU keeps a ceiling: its UUID, because numbers change with the order of the devices."""
POWER_STEP_W = 1.0
ROOT_ALONE = "run as root; NVIDIA's driver leaves it to nobody else"
CLOCK_STEP_MHZ = 15.0
"""NVIDIA's clocks go up by 15 MHz."""


class Gpus:
    """The GPUs that NVML shows, and their ceilings.

    Args:
        pynvml: a module with NVML's Python interface; None imports ``pynvml`` on first use.
    """

    def __init__(self, pynvml: Any = None) -> None:
        self._devices = Devices(pynvml)

    def ceilings(self, kind: Kind, number: int | None = None) -> list[Ceiling]:
        """Of all GPUs, or of one, in NVML's order.

        Raises:
            SensorAbsent: there is none here.
            SensorDenied: they may not be set; ``remedy`` tells what would allow it.
            SensorError: NVML fails.
        """
        found = []
        for part, handle in self._devices.handles():
            if number is None or part == f"gpu/{number}":
                found += self._power(part, handle) if kind == "power" else self._clock(part, handle)
        if not found:
            raise SensorAbsent(
                "no such GPU here" if number is not None else f"no GPU here lets its {kind} be limited"
            )
        if os.geteuid() != 0:
            raise SensorDenied(
                f"the {kind} of {', '.join(c.part for c in found)} is set by root alone",
                remedy=ROOT_ALONE,
            )
        return found

    def _power(self, part: str, handle: Any) -> list[Ceiling]:
        kept = self._devices.ask("nvmlDeviceGetPowerManagementLimit", handle)
        bounds = self._devices.answer("nvmlDeviceGetPowerManagementLimitConstraints", handle)
        if kept is None or bounds is None:
            return []
        return [
            Ceiling(
                part=part, kind="power", place=f"nvml/{self._uuid(handle)}/power", kept=kept,
                now=kept * 1e-3, lowest=bounds[0] * 1e-3, per_unit=1e-3, step=POWER_STEP_W,
            )
        ]  # fmt: skip

    def _clock(self, part: str, handle: Any) -> list[Ceiling]:
        if not (clocks := self._clocks(handle)):
            return []
        return [
            Ceiling(
                part=part, kind="clock", place=f"nvml/{self._uuid(handle)}/clock", kept=None,
                now=float(max(clocks)), lowest=float(min(clocks)), per_unit=1.0, step=CLOCK_STEP_MHZ,
            )
        ]  # fmt: skip

    def _clocks(self, handle: Any) -> list[int]:
        """MHz that the GPU can run at with its fastest memory; none where it does not tell."""
        memory = self._devices.answer("nvmlDeviceGetSupportedMemoryClocks", handle)
        if not memory:
            return []
        return self._devices.answer("nvmlDeviceGetSupportedGraphicsClocks", handle, max(memory)) or []

    def _uuid(self, handle: Any) -> str:
        return str(self._devices.answer("nvmlDeviceGetUUID", handle))

    # -- one place -------------------------------------------------------------------------------

    def read(self, place: str) -> int | None:
        """mW of a power limit; None of clocks, for NVML tells nobody whether they are locked."""
        uuid, kind = _parsed(place)
        if kind == "clock":
            return None
        return self._devices.ask("nvmlDeviceGetPowerManagementLimit", self._of(uuid))

    def write(self, place: str, value: int | None) -> None:
        """Set a power limit in mW, or the highest clock in MHz, which None unlocks.

        Raises:
            SensorDenied: this is not root.
            SensorError: NVML refuses.
        """
        uuid, kind = _parsed(place)
        handle = self._of(uuid)
        try:
            if kind == "power":
                self._devices.tell("nvmlDeviceSetPowerManagementLimit", handle, value)
            elif value is None:
                self._devices.tell("nvmlDeviceResetGpuLockedClocks", handle)
            else:
                lowest = min(self._clocks(handle), default=value)
                self._devices.tell("nvmlDeviceSetGpuLockedClocks", handle, lowest, value)
        except SensorDenied as exc:
            raise SensorDenied(str(exc), remedy=ROOT_ALONE) from exc

    def _of(self, uuid: str) -> Any:
        for _, handle in self._devices.handles():
            if self._uuid(handle) == uuid:
                return handle
        raise SensorError(f"the GPU {uuid} is gone")

    def close(self) -> None:
        self._devices.close()


def _parsed(place: str) -> tuple[str, str]:
    found = PLACE.fullmatch(place)
    if found is None:
        raise SensorError(f"{place!r} is no place of a limit")
    return found[1], found[2]


def number_of(device: str) -> int | None:
    """The GPU that an engine's name of a device means, such as ``cuda:1``; None for all."""
    found = re.search(r"[:.](\d+)$", device)
    return int(found[1]) if found else None
