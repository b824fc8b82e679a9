"""`EnergyCallback` for the Trainer of transformers: ``Trainer(…, callbacks=[EnergyCallback()])``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from negawatt.errors import require
from negawatt.integrations.training import Log, TrainingMeter, Watching, batch_size, trained_parameters

_callback = require("transformers.trainer_callback", extra="transformers")


class EnergyCallback(Watching, _callback.TrainerCallback):  # type: ignore[misc, name-defined]
    """Adds energy to the Trainer's own log, and so to ``trainer_state.json``.

    Batches and samples are counted as they enter the model in training. Tokens are those that the
    Trainer counts, so they need ``include_num_input_tokens_seen`` in its arguments.

    Args:
        logs: where else to report to; see `negawatt.integrations.logs`.
    """

    def __init__(self, logs: Sequence[Log] = ()) -> None:
        self._logs = tuple(logs)
        self._seen = (0, 0)
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        meter = self._meter = TrainingMeter(parameters=trained_parameters(model))
        self._seen = (int(state.global_step), int(state.num_input_tokens_seen))

        # A function of its own: a model may be copied, with its hooks, and a meter may not.
        def count(module: Any, inputs: Any, options: Any) -> None:
            if module.training:
                meter.count(samples=batch_size(options) or batch_size(inputs), steps=1)

        self._hook = model.register_forward_pre_hook(count, with_kwargs=True)
        meter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        updates, tokens = state.global_step - self._seen[0], state.num_input_tokens_seen - self._seen[1]
        self._seen = (int(state.global_step), int(state.num_input_tokens_seen))
        self.meter.count(tokens=tokens, updates=updates)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.epoch()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._meter is not None and state.log_history:
            self._tell(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.__exit__(None, None, None)
        self._hook.remove()
        if state.log_history:
            self._tell(state)

    def _tell(self, state: Any) -> None:
        spent = self.spent
        state.log_history[-1].update({**spent.figures(), **spent.words()})
        for log in self._logs:
            log(spent.figures(), spent.words(), int(state.global_step))
