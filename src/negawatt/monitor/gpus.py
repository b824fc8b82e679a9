"""`NvmlUse`: which processes keep the NVIDIA GPUs busy, as NVML tells it.

Not yet run on that hardware: tested against a double of the ``pynvml`` module only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from negawatt.errors import SensorError
from negawatt.meter.nvml import Devices


class NvmlUse:
    """Shares of each GPU's work, by process.

    From ``nvmlDeviceGetProcessUtilization``: samples of how much of its time a process kept the
    streaming multiprocessors busy. Where a GPU does not tell that, its work is its one process's
    if there is one, and nobody's that is known otherwise.

    Args:
        pynvml: a module with NVML's Python interface; None imports ``pynvml`` on first use.
    """

    def __init__(self, pynvml: Any = None) -> None:
        self._devices = Devices(pynvml)
        self._seen_us: dict[str, int] = {}  # until when the samples of each GPU have been read

    def read(self) -> Mapping[str, Mapping[int, float]]:
        """Share of each GPU's work since the last read, by process id, adding up to 1.

        A GPU that nobody used has no shares; one whose users cannot be told is left out, and so
        are all where there is no NVIDIA driver.
        """
        found: dict[str, Mapping[int, float]] = {}
        try:
            for gpu, handle in self._devices.handles():
                shares = self._shares(gpu, handle)
                if shares is not None:
                    found[gpu] = shares
        except SensorError:
            return {}  # the energy is nobody's then, and the GPU's own sensor says what is wrong
        return found

    def close(self) -> None:
        self._devices.close()

    def _shares(self, gpu: str, handle: Any) -> dict[int, float] | None:
        samples = self._devices.samples(handle, self._seen_us.get(gpu, 0))
        if samples is None:
            users = self._devices.processes(handle)
            return {users[0]: 1.0} if users is not None and len(users) == 1 else None
        busy: dict[int, float] = {}
        for sample in samples:
            busy[sample.pid] = busy.get(sample.pid, 0.0) + sample.smUtil
            self._seen_us[gpu] = max(self._seen_us.get(gpu, 0), sample.timeStamp)
        whole = sum(busy.values())
        return {pid: used / whole for pid, used in busy.items()} if whole > 0 else {}
