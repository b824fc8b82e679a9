"""NVIDIA GPUs: NVML's energy counter (Volta and later), and its power reading where there is none.

Not yet run on that hardware: tested against a double of the ``pynvml`` module only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from negawatt.errors import MissingDependency, SensorError, require
from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent, SensorDenied

REFRESH_S = 0.1
"""The driver updates the counter about ten times a second."""


class NvmlSensor(Sensor):
    """Energy of every GPU that has an energy counter, as ``gpu/N`` in NVML's order.

    A GPU that is split into instances (MIG) is counted whole: its counter tells no instances apart.

    Args:
        pynvml: a module with NVML's Python interface; None imports ``pynvml`` on first use.
    """

    name = "nvml"

    def __init__(self, pynvml: Any = None) -> None:
        self._devices = Devices(pynvml)

    def read(self) -> Reading:
        start = time.monotonic()
        counters = {}
        for component, handle in self._devices.handles():
            millijoules = self._devices.ask("nvmlDeviceGetTotalEnergyConsumption", handle)
            if millijoules is not None:
                counters[component] = Counter(
                    energy_j=millijoules * 1e-3, resolution_j=1e-3, refresh_s=REFRESH_S, limit_w=3000.0
                )
        if not counters:
            raise SensorAbsent("no GPU here has an energy counter (Volta and later have one)")
        return Reading((start + time.monotonic()) / 2, counters)

    @property
    def notes(self) -> tuple[str, ...]:
        split = [name for name, handle in self._devices.handles() if self._devices.is_split(handle)]
        return tuple(f"{name} is split by MIG; its energy cannot be told apart by instance" for name in split)

    def close(self) -> None:
        self._devices.close()


class NvmlPowerSource(PowerSource):
    """Power of every GPU that has no energy counter, as ``gpu/N``.

    From Ampere on the reading is an average over about a second; it is within 5 %, and sampled
    over only a part of the time, so it deserves the wider interval.
    """

    name = "nvml power"
    polled_s = 0.1

    def __init__(self, pynvml: Any = None) -> None:
        self._devices = Devices(pynvml)

    def read_power(self) -> Mapping[str, Power]:
        found = {}
        for component, handle in self._devices.handles():
            if self._devices.ask("nvmlDeviceGetTotalEnergyConsumption", handle) is not None:
                continue  # its counter is the better source
            milliwatts = self._devices.ask("nvmlDeviceGetPowerUsage", handle)
            if milliwatts is not None:
                found[component] = Power(milliwatts * 1e-3, accuracy=0.1, refresh_s=1.0, limit_w=3000.0)
        if not found:
            raise SensorAbsent("no GPU here tells its power without an energy counter")
        return found

    def close(self) -> None:
        self._devices.close()


class Devices:
    """The GPUs that NVML shows, and questions to them."""

    def __init__(self, pynvml: Any) -> None:
        self._nvml = pynvml
        self._handles: dict[str, Any] | None = None

    def handles(self) -> list[tuple[str, Any]]:
        if self._handles is None:
            self._handles = self._find()
        return list(self._handles.items())

    def ask(self, function: str, handle: Any) -> int | None:
        """A number from NVML, or None where the GPU does not support the question."""
        answer = self.answer(function, handle)
        return None if answer is None else int(answer)

    def answer(self, function: str, handle: Any, *more: Any) -> Any:
        """What NVML answers, or None where the GPU does not support the question."""
        with self._translated():
            try:
                return getattr(self._nvml, function)(handle, *more)
            except self._nvml.NVMLError as exc:
                if exc.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                    raise
                return None

    def tell(self, function: str, handle: Any, *more: Any) -> None:
        """Change something at a GPU.

        Raises:
            SensorDenied: this process may not.
            SensorError: the GPU cannot, or the value is out of range.
        """
        with self._translated():
            getattr(self._nvml, function)(handle, *more)

    def samples(self, handle: Any, since_us: int) -> list[Any] | None:
        """What processes used of a GPU after a moment (``pid``, ``smUtil`` in %, ``timeStamp`` in µs).

        None where the GPU does not tell it; empty when nobody used it.
        """
        with self._translated():
            try:
                return list(self._nvml.nvmlDeviceGetProcessUtilization(handle, since_us))
            except self._nvml.NVMLError as exc:
                if exc.value == self._nvml.NVML_ERROR_NOT_FOUND:
                    return []
                if exc.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                    raise
                return None

    def processes(self, handle: Any) -> list[int] | None:
        """Ids of the processes that compute on a GPU; None where it does not tell."""
        with self._translated():
            try:
                return [each.pid for each in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
            except self._nvml.NVMLError as exc:
                if exc.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                    raise
                return None

    def is_split(self, handle: Any) -> bool:
        with self._translated():
            try:
                current, _pending = self._nvml.nvmlDeviceGetMigMode(handle)
            except self._nvml.NVMLError as exc:
                if exc.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                    raise
                return False
            return bool(current)

    def close(self) -> None:
        if self._handles is not None:
            self._handles = None
            with self._translated():
                self._nvml.nvmlShutdown()

    def _find(self) -> dict[str, Any]:
        if self._nvml is None:
            try:
                self._nvml = require("pynvml", extra="nvidia")
            except MissingDependency as exc:
                raise SensorAbsent(str(exc), remedy="pip install 'negawatt[nvidia]'") from exc
        with self._translated():
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            handles = {f"gpu/{n}": self._nvml.nvmlDeviceGetHandleByIndex(n) for n in range(count)}
        if not handles:
            self._nvml.nvmlShutdown()
            raise SensorAbsent("the NVIDIA driver is loaded and shows no GPU")
        return handles

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """NVML's errors become ours, here and nowhere else."""
        nvml = self._nvml
        try:
            yield
        except nvml.NVMLError as exc:
            code = exc.value
            if code in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                raise SensorAbsent(f"no NVIDIA driver: {exc}") from exc
            if code == nvml.NVML_ERROR_NO_PERMISSION:
                raise SensorDenied(
                    f"NVML: {exc}", remedy="add the user to the group of /dev/nvidia0"
                ) from exc
            raise SensorError(f"NVML: {exc}") from exc
