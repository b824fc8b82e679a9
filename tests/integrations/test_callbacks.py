"""Callbacks in the real trainers of transformers, PyTorch Lightning and Keras: tiny models, real runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from negawatt import NegawattError

torch = pytest.importorskip("torch")


def test_transformers_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from negawatt.integrations.transformers import EnergyCallback

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    data = [
        {"input_ids": torch.arange(8) % 64, "labels": torch.arange(8) % 64} for _ in range(22)
    ]  # the last batch is smaller
    reported: list[int] = []
    callback = EnergyCallback(logs=[lambda figures, words, step: reported.append(step)])
    with pytest.raises(NegawattError, match="has not begun"):
        _ = callback.spent
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        include_num_input_tokens_seen="all",
        save_strategy="no",
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    counts = callback.spent.counts
    trained = sum(p.numel() for p in model.parameters())
    assert counts == {
        "sample": 44,
        "token": 44 * 8,
        "step": 12,
        "update": 6,
        "parameter_update": 6 * trained,
        "epoch": 2,
    }
    assert not model._forward_pre_hooks
    assert callback.spent.energy.value_j > 0
    assert len(set(reported)) == 6
    energies = [entry["negawatt/energy_j"] for entry in trainer.state.log_history]
    assert len(energies) >= 6
    assert energies == sorted(energies)
    assert trainer.state.log_history[-1]["negawatt/energy_per_token_j"] == pytest.approx(
        callback.spent.per("token").value_j
    )
    trainer.save_state()
    saved = json.loads((tmp_path / "trainer_state.json").read_text())
    assert saved["log_history"][-1]["negawatt/provenance"] in ("estimated", "derived", "measured")


def test_lightning_trainer(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    from negawatt.integrations.lightning import EnergyCallback

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: object, batch_idx: int) -> object:
            return self.layer(batch[0]).pow(2).mean()  # type: ignore[index]

        def configure_optimizers(self) -> object:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data = torch.utils.data.TensorDataset(torch.rand(20, 4))
    callback = EnergyCallback(tokens=lambda batch: batch[0].numel())
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=lightning.loggers.CSVLogger(tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=8))
    assert callback.spent.counts == {
        "sample": 40,
        "token": 160,
        "step": 6,
        "update": 4,
        "parameter_update": 4 * 5,
        "epoch": 2,
    }
    assert trainer.callback_metrics["negawatt/energy_per_epoch_j"] > 0
    table = next(tmp_path.glob("**/metrics.csv")).read_text()
    assert "negawatt/energy_per_sample_j" in table.splitlines()[0]
    assert "negawatt/energy_per_sample_high_j" in table.splitlines()[0]


def test_keras_fit() -> None:
    keras = pytest.importorskip("keras")
    from negawatt.integrations.keras import EnergyCallback

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    reported: list[int] = []
    callback = EnergyCallback(
        8, tokens_per_sample=4, every=2, logs=[lambda figures, words, step: reported.append(step)]
    )
    x, y = torch.rand(16, 4).numpy(), torch.rand(16, 1).numpy()
    history = model.fit(x, y, epochs=3, batch_size=8, verbose=0, callbacks=[callback]).history
    assert callback.spent.counts == {
        "sample": 48,
        "token": 192,
        "step": 6,
        "update": 6,
        "parameter_update": 6 * 5,
        "epoch": 3,
    }
    energies = history["negawatt/energy_j"]
    assert len(energies) == 3
    assert energies == sorted(energies)
    assert all(math.isfinite(e) and e > 0 for e in energies)
    assert reported == [2, 2, 4, 4, 6, 6, 6]
