"""`EnergyCallback` for Keras, on any of its backends: ``model.fit(…, callbacks=[EnergyCallback()])``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from negawatt.errors import require
from negawatt.integrations.training import Log, TrainingMeter, Watching

_callbacks = require("keras.callbacks", extra=None)


class EnergyCallback(Watching, _callbacks.Callback):  # type: ignore[misc, name-defined]
    """Adds energy to the logs of every epoch, and so to the history that ``fit`` returns.

    Args:
        batch_size: samples in a batch; Keras does not tell its callbacks. None counts no samples, and a last
            batch that is smaller counts as a full one.
        tokens_per_sample: tokens in a sample, where they all have the same number.
        every: steps between reports to `logs`; 0 for epochs only.
        logs: where else to report to; see `negawatt.integrations.logs`.
    """

    def __init__(
        self,
        batch_size: int | None = None,
        *,
        tokens_per_sample: int = 0,
        every: int = 0,
        logs: Sequence[Log] = (),
    ) -> None:
        super().__init__()
        self._batch_size, self._tokens_per_sample = batch_size or 0, tokens_per_sample
        self._every, self._logs = every, tuple(logs)

    def on_train_begin(self, logs: Any = None) -> None:
        trained = sum(math.prod(map(int, weight.shape)) for weight in self.model.trainable_weights)
        self._meter = TrainingMeter(logs=self._logs, every=self._every, parameters=trained)
        self.meter.__enter__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.meter.step(self._batch_size, self._batch_size * self._tokens_per_sample)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.meter.epoch()
        if logs is not None:
            logs.update(self.spent.figures())

    def on_train_end(self, logs: Any = None) -> None:
        self.meter.__exit__(None, None, None)
