"""`TrainingMeter`: the energy of a training run, per sample, token, step, update, parameter and epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from negawatt.energy import Energy
from negawatt.errors import UsageError
from negawatt.meter import ProcessMeter, Station

Log = Callable[[Mapping[str, float], Mapping[str, str], int], None]
"""Where figures go: called with figures by name, words by name, and the step."""

UNITS = ("sample", "token", "step", "update", "parameter_update", "epoch")


@dataclass(frozen=True)
class Spent:
    """What training has spent so far, and on how much work.

    Attributes:
        energy: joules of this process and its children since the start.
        cpu_s, duration_s: CPU seconds and seconds since the start.
        counts: how many of each of `UNITS` there were; a unit that nobody counted is absent. A step
            is one batch, an update one step of the optimizer, and a parameter update one parameter
            changed once: updates times parameters trained.
    """

    energy: Energy
    cpu_s: float
    duration_s: float
    counts: Mapping[str, int] = field(default_factory=dict)

    def per(self, unit: str) -> Energy:
        """Energy per sample, token, …, with its interval; missing where there were none, or no energy.

        Raises:
            UsageError: there is no such unit.
        """
        if unit not in UNITS:
            raise UsageError(f"expected one of {', '.join(UNITS)}, not {unit!r}")
        if not self.counts.get(unit):
            return Energy.missing(f"no {unit.replace('_', ' ')} was counted")
        return self.energy.scaled(1 / self.counts[unit])

    def figures(self, prefix: str = "negawatt/") -> dict[str, float]:
        """Flat numbers for a logger: each energy with both ends. What is missing is NaN, never 0."""
        energies = {
            "energy": self.energy,
            **{f"energy_per_{u}": self.per(u) for u in UNITS if self.counts.get(u)},
        }
        found = {"cpu_s": self.cpu_s, "duration_s": self.duration_s}
        for name, energy in energies.items():
            for end, value in (("", energy.value_j), ("_low", energy.low_j), ("_high", energy.high_j)):
                missing = value is None or energy.is_missing
                found[f"{name}{end}_j"] = math.nan if missing or value is None else value
        return {prefix + name: value for name, value in found.items()}

    def words(self, prefix: str = "negawatt/") -> dict[str, str]:
        """What the figures rest on, for a logger that takes text."""
        return {f"{prefix}provenance": str(self.energy.provenance), f"{prefix}reason": self.energy.reason}


class TrainingMeter:
    """Measures a training loop of your own.

    ::

        with TrainingMeter(logs=[log], every=50) as meter:
            for epoch in range(3):
                for batch in loader:
                    loss = train_on(batch)
                    optimizer.step()
                    meter.step(samples=len(batch), updated=True)
                meter.epoch()
        print(meter.spent.per("sample"))

    Args:
        logs: where to report to; after every `every` steps, every epoch, and at the end.
        every: steps between reports; 0 for epochs only.
        parameters: parameters that are trained, for energy per parameter update.
        station: the sensors to use; by default all that can be trusted here.
    """

    def __init__(
        self,
        *,
        logs: Sequence[Log] = (),
        every: int = 0,
        parameters: int = 0,
        station: Station | None = None,
    ) -> None:
        self.parameters = parameters
        self._logs, self._every = tuple(logs), every
        self._meter = ProcessMeter(os.getpid(), station)
        self._counts = dict.fromkeys(UNITS, 0)
        self._spent: Spent | None = None

    def __enter__(self) -> TrainingMeter:
        self._counts = dict.fromkeys(UNITS, 0)
        self._spent = None
        self._meter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spent = self._of(self._meter.stop())
        self._report()

    def step(self, samples: int = 0, tokens: int = 0, *, updated: bool = True) -> None:
        """One batch is done.

        Args:
            samples, tokens: how many it held; 0 where that has no meaning.
            updated: the optimizer made its step; not so while gradients are only gathered.
        """
        self.count(samples=samples, tokens=tokens, steps=1, updates=int(updated))
        if self._every and self._counts["step"] % self._every == 0:
            self._report()

    def epoch(self) -> None:
        """One pass over the data is done."""
        self._counts["epoch"] += 1
        self._report()

    def count(self, *, samples: int = 0, tokens: int = 0, steps: int = 0, updates: int = 0) -> None:
        """Work done since the last call, where somebody else keeps the loop."""
        done = {"sample": samples, "token": tokens, "step": steps, "update": updates}
        done["parameter_update"] = updates * self.parameters
        for unit, number in done.items():
            self._counts[unit] += number

    @property
    def spent(self) -> Spent:
        """What has been spent so far; after the block, in all.

        Raises:
            UsageError: the block has not been entered.
        """
        return self._spent or self._of(self._meter.read())

    def _of(self, measurement: Any) -> Spent:
        counts = {unit: number for unit, number in self._counts.items() if number}
        return Spent(measurement.energy, measurement.cpu_s, measurement.duration_s, counts)

    def _report(self) -> None:
        if self._logs:
            spent = self.spent
            for log in self._logs:
                log(spent.figures(), spent.words(), self._counts["step"])


class Watching:
    """What the callbacks share: a meter that is there once training has begun."""

    _meter: TrainingMeter | None = None

    @property
    def meter(self) -> TrainingMeter:
        """The meter of this training.

        Raises:
            UsageError: training has not begun.
        """
        if self._meter is None:
            raise UsageError("training has not begun, so nothing has been spent yet")
        return self._meter

    @property
    def spent(self) -> Spent:
        """What training has spent so far, or in all; the same errors as `meter`."""
        return self.meter.spent


def trained_parameters(model: Any) -> int:
    """How many numbers of a PyTorch module are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def batch_size(batch: Any) -> int:
    """Samples in a batch, as loaders make them: the first dimension of the first tensor in it; 0 if none."""
    if hasattr(batch, "shape"):
        return int(batch.shape[0]) if len(batch.shape) else 0
    values = (
        batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    )
    return next((size for size in map(batch_size, values) if size), 0)
