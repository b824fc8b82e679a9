"""Loggers that people have already: TensorBoard, Weights & Biases, MLflow.

Each is called with figures, words and a step, as a `TrainingMeter` and the callbacks do. What is
missing arrives as NaN, which all three show as such; the words say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from negawatt.errors import require


class TensorBoardLog:
    """Scalars and text through a `torch.utils.tensorboard.SummaryWriter` of yours."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._told: dict[str, str] = {}

    def __call__(self, figures: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        for name, text in words.items():
            if self._told.get(name) != text:
                self._writer.add_text(name, text or "–", step)
        self._told = dict(words)


class WandbLog:
    """Figures into a run of Weights & Biases (what ``wandb.init`` returned), words into its summary."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, figures: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        # No step of W&B's own is set: it has to grow, and other callbacks set it too.
        self._run.log({**figures, "negawatt/step": step})
        self._run.summary.update(dict(words))


class MlflowLog:
    """Metrics and tags of an MLflow run.

    Args:
        run_id: the run; by default the one active at the first report, or a new one if none is.
        tracking_uri: of the store; by default the one MLflow is set to.
    """

    def __init__(self, run_id: str | None = None, *, tracking_uri: str | None = None) -> None:
        self._run_id = run_id
        self._mlflow = require("mlflow", extra=None)
        self._client = self._mlflow.MlflowClient(tracking_uri)

    def __call__(self, figures: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        if self._run_id is None:
            run = self._mlflow.active_run() or self._mlflow.start_run()
            self._run_id = str(run.info.run_id)
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, step=step)
        for name, text in words.items():
            self._client.set_tag(self._run_id, name, text)
