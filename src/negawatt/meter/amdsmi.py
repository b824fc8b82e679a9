"""AMD GPUs by the energy accumulator of AMD SMI (not supported inside virtual machines).

Not yet run on that hardware: tested against a double of the ``amdsmi`` module only. AMD's CPUs have
RAPL counters of their own: see `negawatt.meter.rapl`, `negawatt.meter.perf` and
`negawatt.meter.hwmon`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from negawatt.errors import SensorError
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent, SensorDenied

_NO_PERMISSION = 10
_NOT_SUPPORTED = 2
"""Codes of ``amdsmi_status_t``."""


class AmdSmiSensor(Sensor):
    """Energy of every AMD GPU, as ``gpu/amd-N`` in AMD SMI's order.

    Args:
        amdsmi: a module with AMD SMI's Python interface; None imports ``amdsmi`` on first use.
    """

    name = "amdsmi"

    def __init__(self, amdsmi: Any = None) -> None:
        self._smi = amdsmi
        self._handles: list[Any] | None = None

    def read(self) -> Reading:
        if self._handles is None:
            self._handles = self._devices()
        start = time.monotonic()
        counters = {}
        with self._translated():
            for number, handle in enumerate(self._handles):
                answer = self._smi.amdsmi_get_energy_count(handle)
                # The accumulator's name changed between releases of the library.
                count = answer.get("energy_accumulator", answer.get("power"))
                step_j = answer["counter_resolution"] * 1e-6
                counters[f"gpu/amd-{number}"] = Counter(
                    energy_j=count * step_j, resolution_j=step_j, refresh_s=0.01, limit_w=3000.0
                )
        return Reading((start + time.monotonic()) / 2, counters)

    def close(self) -> None:
        if self._handles is not None:
            self._handles = None
            with self._translated():
                self._smi.amdsmi_shut_down()

    def _devices(self) -> list[Any]:
        if self._smi is None:
            self._smi = _imported()
        with self._translated():
            self._smi.amdsmi_init()
            handles = list(self._smi.amdsmi_get_processor_handles())
        if not handles:
            self._smi.amdsmi_shut_down()
            raise SensorAbsent("the AMD driver is loaded and shows no GPU")
        return handles

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """AMD SMI's errors become ours, here and nowhere else."""
        try:
            yield
        except self._smi.AmdSmiLibraryException as exc:
            code = exc.get_error_code()
            if code == _NOT_SUPPORTED:
                raise SensorAbsent("this AMD GPU, or this virtual machine, has no energy counter") from exc
            if code == _NO_PERMISSION:
                raise SensorDenied(
                    f"AMD SMI: {exc}", remedy="add the user to the groups render and video"
                ) from exc
            raise SensorError(f"AMD SMI: {exc}") from exc


def _imported() -> Any:
    """AMD ships the module with its driver, not on PyPI; importing it loads the driver's library."""
    try:
        import amdsmi  # type: ignore[import-not-found]
    except (ImportError, OSError, KeyError) as exc:
        raise SensorAbsent("AMD SMI is not installed") from exc
    return amdsmi
