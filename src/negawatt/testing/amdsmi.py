"""A double of the ``amdsmi`` module: the calls that `negawatt.meter.amdsmi` makes, and no GPU behind it."""

from __future__ import annotations

from typing import Any


class AmdSmiLibraryException(Exception):
    """As amdsmi's: carries the library's status code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"AMD SMI status {code}")
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class AmdSmiDouble:
    """Stands in for the module.

    Attributes:
        count: the accumulators, in steps of 15.3 microjoules.
        fault: a status code that every following call raises, or None.
    """

    AmdSmiLibraryException = AmdSmiLibraryException
    resolution_uj = 15.3

    def __init__(self, gpus: int = 2) -> None:
        self.count = [10**9] * gpus
        self.fault: int | None = None

    def spend(self, joules: float) -> None:
        """Let this many joules flow through every GPU."""
        self.count = [count + round(joules * 1e6 / self.resolution_uj) for count in self.count]

    def amdsmi_init(self) -> None:
        self._check()

    def amdsmi_shut_down(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[int]:
        self._check()
        return list(range(len(self.count)))

    def amdsmi_get_energy_count(self, handle: int) -> dict[str, Any]:
        self._check()
        return {
            "energy_accumulator": self.count[handle],
            "counter_resolution": self.resolution_uj,
            "timestamp": 0,
        }

    def _check(self) -> None:
        if self.fault is not None:
            raise AmdSmiLibraryException(self.fault)
