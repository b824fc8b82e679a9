"""The transformers engine on the real model, against what the library itself computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.settings import Settings
from negawatt.engine.transformers import TransformersBackend
from negawatt.errors import EngineError, UnsupportedSetting

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ("The capital of France is", "Once upon a time there was a small", "Water boils")
TOLERANCE = 2e-3
"""Logits range over tens; a batch adds up in another order than a single sequence."""


@pytest.fixture(scope="module")
def checkpoint(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TransformersBackend.prepare(model.path, "native", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def prompts(model: Artifact) -> list[list[int]]:
    return [model.tokenizer.encode(text) for text in PROMPTS]


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> TransformersBackend:
    backend = TransformersBackend(Settings(threads=2, batch=3))
    backend.load(checkpoint)
    return backend


@pytest.fixture(scope="module")
def single(checkpoint: Path) -> TransformersBackend:
    backend = TransformersBackend(Settings(threads=2, batch=1))
    backend.load(checkpoint)
    return backend


@pytest.fixture
def batch(loaded: TransformersBackend) -> Iterator[TransformersBackend]:
    yield loaded
    for slot in range(3):
        loaded.release(slot)


@pytest.fixture
def alone(single: TransformersBackend) -> Iterator[TransformersBackend]:
    yield single
    single.release(0)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, prompts: list[list[int]]) -> list[Logits]:
    """Logits after every position, from the library without cache, padding or our code."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([tokens]), use_cache=False).logits[0].numpy() for tokens in prompts]


def test_a_padded_batch_gives_each_sequence_its_own_logits(
    batch: TransformersBackend, prompts: list[list[int]], expected: list[Logits]
) -> None:
    chunks = [Chunk(slot, tokens, rows=len(tokens)) for slot, tokens in enumerate(prompts)]
    for rows, reference in zip(batch.forward(chunks), expected, strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, reference, atol=TOLERANCE)


def test_a_released_sequence_leaves_the_others_untouched(
    batch: TransformersBackend, prompts: list[list[int]], expected: list[Logits]
) -> None:
    """Fed but for their last token, released and reordered, then fed the last one."""
    batch.forward([Chunk(slot, tokens[:-1]) for slot, tokens in enumerate(prompts)])
    batch.release(1)
    last = batch.forward([Chunk(slot, prompts[slot][-1:]) for slot in (2, 0)])
    for rows, slot in zip(last, (2, 0), strict=True):
        assert rows.shape == (1, batch.vocab_size)
        np.testing.assert_allclose(rows[0], expected[slot][-1], atol=TOLERANCE)


def test_tokens_taken_back_are_forgotten(
    alone: TransformersBackend, prompts: list[list[int]], expected: list[Logits]
) -> None:
    tokens = prompts[1]
    alone.forward([Chunk(0, [*tokens[:4], 17, 18, 19])])
    alone.truncate(0, 4)
    (rows,) = alone.forward([Chunk(0, tokens[4:], rows=len(tokens) - 4)])
    np.testing.assert_allclose(rows, expected[1][4:], atol=TOLERANCE)


def test_greedy_decoding_is_what_generate_writes(
    alone: TransformersBackend, checkpoint: Path, prompts: list[list[int]]
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    written = model.generate(torch.tensor([prompts[1]]), max_new_tokens=8, min_new_tokens=8, do_sample=False)[
        0, len(prompts[1]) :
    ].tolist()
    feed, ours = prompts[1], []
    for _ in range(8):
        (rows,) = alone.forward([Chunk(0, feed)])
        feed = [int(rows[0].argmax())]
        ours += feed
    assert ours == written


def test_bf16_stays_near(checkpoint: Path, prompts: list[list[int]], expected: list[Logits]) -> None:
    backend = TransformersBackend(Settings(threads=2, weight_format="bf16"))
    backend.load(checkpoint)
    assert backend.info()["dtype"] == "bfloat16"
    (rows,) = backend.forward([Chunk(0, prompts[1], rows=len(prompts[1]))])
    assert rows.dtype == np.float32
    assert 1e-3 < np.abs(rows - expected[1]).mean() < 0.3


def test_info_says_what_runs(alone: TransformersBackend) -> None:
    info = alone.info()
    assert info["dtype"] == "float32"
    assert info["threads"] == 2
    assert info["attention"] == "sdpa"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Settings(weight_format="int8"), "'int8'; it has native, fp32, bf16"),
        (Settings(kv_cache="u8"), "'u8'; it has default"),
        (Settings(flash_attention=True), "no flash-attention switch"),
        (Settings(speculation="ngram", batch=2), "batch 1 only"),
        (Settings(device="abacus"), "'abacus'; it has cpu, cuda"),
    ],
)
def test_what_it_lacks_is_refused_by_name(settings: Settings, named: str) -> None:
    with pytest.raises(UnsupportedSetting, match=named):
        TransformersBackend(settings)


def damaged(checkpoint: Path, folder: Path) -> Path:
    """A copy of the checkpoint to spoil; the weights are a link."""
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    return folder


def test_an_unknown_architecture_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(checkpoint, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "perceptron9"}))
    with pytest.raises(EngineError, match="no causal language model for 'perceptron9'"):
        TransformersBackend(Settings()).load(folder)


def test_a_truncated_weight_file_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(checkpoint, tmp_path / "cut")
    weights = next(checkpoint.glob("*.safetensors"))
    with weights.open("rb") as whole:
        (folder / "model.safetensors").write_bytes(whole.read(1_000_000))
    with pytest.raises(EngineError, match="damaged"):
        TransformersBackend(Settings()).load(folder)


def test_missing_tensors_are_not_made_up(checkpoint: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers and a warning."""
    from safetensors.torch import load_file, save_file

    folder = damaged(checkpoint, tmp_path / "partial")
    tensors = {k: v for f in checkpoint.glob("*.safetensors") for k, v in load_file(f).items()}
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"lacks 1 tensors.*layers\.3\.mlp\.up_proj"):
        TransformersBackend(Settings()).load(folder)
