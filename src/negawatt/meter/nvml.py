"""NVIDIA GPUs by NVML's total-energy counter (Volta and later).

Not yet run on that hardware: tested against a double of the ``pynvml`` module only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from negawatt.errors import MissingDependency, SensorError, require
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent, SensorDenied

REFRESH_S = 0.1
"""The driver updates the counter about ten times a second."""


class NvmlSensor(Sensor):
    """Energy of every GPU the driver shows, as ``gpu/N`` in NVML's order.

    Args:
        pynvml: a module with NVML's Python interface; None imports ``pynvml`` on first use.
    """

    name = "nvml"

    def __init__(self, pynvml: Any = None) -> None:
        self._nvml = pynvml
        self._handles: dict[str, Any] | None = None

    def read(self) -> Reading:
        if self._handles is None:
            self._handles = self._devices()
        start = time.monotonic()
        counters = {}
        with self._translated():
            for component, handle in self._handles.items():
                millijoules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
                counters[component] = Counter(
                    energy_j=millijoules * 1e-3, resolution_j=1e-3, refresh_s=REFRESH_S, limit_w=3000.0
                )
        return Reading((start + time.monotonic()) / 2, counters)

    def close(self) -> None:
        if self._handles is not None:
            self._handles = None
            self._nvml.nvmlShutdown()

    def _devices(self) -> dict[str, Any]:
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
            if code == nvml.NVML_ERROR_NOT_SUPPORTED:
                raise SensorAbsent("this GPU has no energy counter (Volta and later have one)") from exc
            if code == nvml.NVML_ERROR_NO_PERMISSION:
                raise SensorDenied(
                    f"NVML: {exc}", remedy="add the user to the group of /dev/nvidia0"
                ) from exc
            raise SensorError(f"NVML: {exc}") from exc
