"""A double of the ``pynvml`` module: the calls that `negawatt.meter.nvml` and
`negawatt.limits.gpu` make, and no GPU behind it.

It keeps to what NVML documents: integers of millijoules and milliwatts, a counter that is only
refreshed now and then, errors as exceptions that carry a code, calls before ``nvmlInit`` refused.
It says nothing about how real hardware behaves beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass


class NVMLError(Exception):
    """As pynvml's: ``value`` holds the code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass(frozen=True)
class ProcessSample:
    """As ``c_nvmlProcessUtilizationSample_t``: what one process used of a GPU, in percent."""

    pid: int
    timeStamp: int
    smUtil: int
    memUtil: int = 0


@dataclass(frozen=True)
class RunningProcess:
    """As ``c_nvmlProcessInfo_t``."""

    pid: int
    usedGpuMemory: int | None = None


class NvmlDouble:
    """Stands in for the module. Drive it with `spend`, `power_w` and `fault`.

    Attributes:
        energy_j: joules each GPU has used since its driver was loaded.
        power_w: watts each GPU draws, as it would report them.
        has_counter: whether the GPUs have energy counters.
        split: whether they are split into instances.
        fault: an error code that every following call raises, or None.
        used: samples of what processes used of each GPU; None for GPUs that do not tell.
        running: ids of the processes on each GPU.
        power_limit_mw: of each GPU.
        locked_mhz: lowest and highest clock that each GPU is locked to; None where it is not.
        may_set: whether this process is root, as far as the driver is concerned.
    """

    NVMLError = NVMLError
    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15

    POWER_LIMITS_MW = (100_000, 400_000)
    MEMORY_MHZ = (2619, 1593)
    GRAPHICS_MHZ = tuple(range(1980, 344, -15))

    def __init__(self, gpus: int = 2, *, has_counter: bool = True, split: bool = False) -> None:
        self.energy_j = [1000.0] * gpus
        self.power_w = [100.0] * gpus
        self.has_counter = has_counter
        self.split = split
        self.fault: int | None = None
        self.used: list[list[ProcessSample]] | None = [[] for _ in range(gpus)]
        self.running: list[list[int]] = [[] for _ in range(gpus)]
        self.power_limit_mw = [400_000] * gpus
        self.locked_mhz: list[tuple[int, int] | None] = [None] * gpus
        self.may_set = True
        self._users = 0

    def spend(self, joules: float) -> None:
        """Let this many joules flow through every GPU."""
        self.energy_j = [e + joules for e in self.energy_j]

    # The names below are NVML's own.

    def nvmlInit(self) -> None:
        if self.fault is not None:
            raise NVMLError(self.fault)
        self._users += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self._users -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.energy_j)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check()
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self._check()
        if not self.has_counter:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return int(self.energy_j[handle] * 1000)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._check()
        return int(self.power_w[handle] * 1000)

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        self._check()
        if not self.has_counter:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return [int(self.split), int(self.split)]

    def nvmlDeviceGetProcessUtilization(self, handle: int, timeStamp: int) -> list[ProcessSample]:
        self._check()
        if self.used is None:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        fresh = [sample for sample in self.used[handle] if sample.timeStamp > timeStamp]
        if not fresh:
            raise NVMLError(self.NVML_ERROR_NOT_FOUND)
        return fresh

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[RunningProcess]:
        self._check()
        return [RunningProcess(pid) for pid in self.running[handle]]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        self._check()
        return f"GPU-00000000-0000-0000-0000-{handle:012d}"

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        self._check()
        return self.power_limit_mw[handle]

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: int) -> list[int]:
        self._check()
        return list(self.POWER_LIMITS_MW)

    def nvmlDeviceSetPowerManagementLimit(self, handle: int, limit: int) -> None:
        self._check_right()
        lowest, highest = self.POWER_LIMITS_MW
        if not lowest <= limit <= highest:
            raise NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)
        self.power_limit_mw[handle] = limit

    def nvmlDeviceGetSupportedMemoryClocks(self, handle: int) -> list[int]:
        self._check()
        return list(self.MEMORY_MHZ)

    def nvmlDeviceGetSupportedGraphicsClocks(self, handle: int, memoryClockMHz: int) -> list[int]:
        self._check()
        if memoryClockMHz not in self.MEMORY_MHZ:
            raise NVMLError(self.NVML_ERROR_NOT_FOUND)
        return list(self.GRAPHICS_MHZ)

    def nvmlDeviceSetGpuLockedClocks(self, handle: int, minGpuClockMHz: int, maxGpuClockMHz: int) -> None:
        self._check_right()
        if minGpuClockMHz > maxGpuClockMHz:
            raise NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)
        self.locked_mhz[handle] = (minGpuClockMHz, maxGpuClockMHz)

    def nvmlDeviceResetGpuLockedClocks(self, handle: int) -> None:
        self._check_right()
        self.locked_mhz[handle] = None

    def _check_right(self) -> None:
        self._check()
        if not self.may_set:
            raise NVMLError(self.NVML_ERROR_NO_PERMISSION)

    def _check(self) -> None:
        if self._users == 0:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)
        if self.fault is not None:
            raise NVMLError(self.fault)
