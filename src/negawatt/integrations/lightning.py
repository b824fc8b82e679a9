"""`EnergyCallback` for PyTorch Lightning: ``Trainer(callbacks=[EnergyCallback()])``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from negawatt.errors import require
from negawatt.integrations.training import Log, TrainingMeter, Watching, batch_size, trained_parameters

# Two packages hold the same library, and a Trainer knows only its own package's callbacks.
_NAME = "lightning.pytorch" if find_spec("lightning") else "pytorch_lightning"
_lightning = require(f"{_NAME}.callbacks", extra=None)


class EnergyCallback(Watching, _lightning.Callback):  # type: ignore[misc, name-defined]
    """Logs energy through the Trainer, and so to whatever loggers it has, at every epoch's end.

    Args:
        tokens: tells the tokens of a batch; without it none are counted.
        every: steps between reports to `logs`; 0 for epochs only.
        logs: where else to report to; see `negawatt.integrations.logs`.
    """

    def __init__(
        self, *, tokens: Callable[[Any], int] | None = None, every: int = 0, logs: Sequence[Log] = ()
    ) -> None:
        self._tokens, self._every, self._logs = tokens, every, tuple(logs)
        self._updates = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._meter = TrainingMeter(
            logs=self._logs, every=self._every, parameters=trained_parameters(pl_module)
        )
        self._updates = int(trainer.global_step)
        self.meter.__enter__()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The Trainer's global step counts the optimizer's steps: none while gradients are gathered.
        updates, self._updates = int(trainer.global_step) - self._updates, int(trainer.global_step)
        self.meter.step(batch_size(batch), self._tokens(batch) if self._tokens else 0, updated=updates > 0)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.meter.epoch()
        pl_module.log_dict(self.spent.figures())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.meter.__exit__(None, None, None)
