"""`ReplicaLoad`: what a replica tells of itself, for it to be decided how many there should be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from negawatt.meter import station
from negawatt.meter.footprint import MEMORY_W_PER_GB, memory
from negawatt.meter.process import descendants
from negawatt.serve.model import ServedModel
from negawatt.serve.receipt import Receipt


class ReplicaLoad:
    """Watches the models of one replica; their workers have been started.

    Args:
        models: that it serves.
        settle_s: so often what is spent beside all requests is written down, and the watts are known anew.
        clock: monotonic seconds.
    """

    def __init__(
        self, models: Iterable[ServedModel], settle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models, self._settle_s, self._clock = list(models), settle_s, clock
        self._since_s = self._settled_s = clock()
        self._idle_j = 0.0
        for model in self._models:
            model.listeners.append(self._note)

    def figures(self) -> dict[str, float]:
        """Of each model ``wait_s:NAME``, ``busy:NAME`` and ``slots:NAME``; ``idle_w`` once that is known.

        The watts are those of all ``idle`` receipts since this was made, and those of `memory_w`, which is in
        no receipt. Books are closed before, so where no receipt was written nothing was spent, and 0 is
        measured. Where the energy of a receipt is missing, the least it can have been counts: a replica is
        not taken away for what is not known.
        """
        told = {}
        for model in self._models:
            told[f"wait_s:{model.name}"] = model.expected_wait_s()
            told[f"busy:{model.name}"] = float(model.busy)
            told[f"slots:{model.name}"] = float(model.options.settings.batch)
        now_s = self._clock()
        if now_s - self._settled_s >= self._settle_s:
            self._settled_s = now_s
            for model in self._models:
                if model.state == "ready":
                    model.write_idle()
        if self._settled_s > self._since_s:
            told["idle_w"] = self._idle_j / (self._settled_s - self._since_s) + memory_w()
        return told

    def _note(self, receipt: Receipt) -> None:
        if receipt.outcome == "idle":
            energy = receipt.energy
            self._idle_j += (energy.low_j or 0.0) if energy.value_j is None else energy.value_j


def memory_w() -> float:
    """Watts of the memory that this process and its workers hold, as `negawatt.meter.footprint` has them.

    0 where a counter tells of memory, which is then among the joules of the receipts.
    """
    if any(name.startswith("dram") for name in station().totals()):
        return 0.0
    resident, shared = 0, 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        with suppress(OSError):
            held, common, _ = memory(Path(f"/proc/{pid}/status").read_bytes())
            resident, shared = resident + held - common, max(shared, common)
    return (resident + shared) / 2**30 * MEMORY_W_PER_GB[1]
