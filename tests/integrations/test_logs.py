"""The real loggers, read back: figures with both ends, words, and NaN where energy is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from negawatt import Energy
from negawatt.integrations.training import Spent

KNOWN = Spent(Energy.estimated(10.0, 4.0, 25.0, "three models"), 2.0, 3.0, {"token": 5, "step": 1})
MISSING = Spent(Energy.missing("permission denied"), 2.5, 4.0, {"token": 6, "step": 2})


def tell(log: Any) -> None:
    for step, spent in enumerate((KNOWN, MISSING), start=1):
        log(spent.figures(), spent.words(), step)


def check(first: Mapping[str, float], second: Mapping[str, float]) -> None:
    assert first["negawatt/energy_j"] == pytest.approx(10.0)
    assert first["negawatt/energy_low_j"] == pytest.approx(4.0)
    assert first["negawatt/energy_per_token_j"] == pytest.approx(2.0)
    assert math.isnan(second["negawatt/energy_j"])
    assert math.isnan(second["negawatt/energy_per_token_j"])
    assert second["negawatt/cpu_s"] == pytest.approx(2.5)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from negawatt.integrations.logs import TensorBoardLog

    with SummaryWriter(str(tmp_path)) as writer:
        tell(TensorBoardLog(writer))
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    check(*({tag: values[i] for tag, values in scalars.items()} for i in (0, 1)))
    texts = events.Tensors("negawatt/reason/text_summary")
    assert [t.tensor_proto.string_val[0].decode() for t in texts] == ["three models", "permission denied"]


def test_mlflow_in_a_local_store(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    from negawatt.integrations.logs import MlflowLog

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment)
    tell(MlflowLog(run.info.run_id, tracking_uri=store))
    names = ("negawatt/energy_j", "negawatt/energy_low_j", "negawatt/energy_per_token_j", "negawatt/cpu_s")
    history = {name: [m.value for m in client.get_metric_history(run.info.run_id, name)] for name in names}
    check(*({name: values[i] for name, values in history.items()} for i in (0, 1)))
    tags = client.get_run(run.info.run_id).data.tags
    assert tags["negawatt/provenance"] == "missing"
    assert tags["negawatt/reason"] == "permission denied"


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    wandb = pytest.importorskip("wandb")
    from negawatt.integrations.logs import WandbLog

    with wandb.init(project="p", dir=str(tmp_path), mode="offline") as run:
        log = WandbLog(run)
        log(KNOWN.figures(), KNOWN.words(), 1)
        assert run.summary["negawatt/provenance"] == "estimated"
        assert run.summary["negawatt/energy_j"] == 10.0
        log(MISSING.figures(), MISSING.words(), 2)
        assert math.isnan(float(run.summary["negawatt/energy_j"]))
        assert run.summary["negawatt/reason"] == "permission denied"
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
