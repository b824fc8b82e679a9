"""The OpenVINO engine on the real model, against transformers in fp32 on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.openvino import OpenVinoBackend
from negawatt.engine.settings import Settings
from negawatt.engine.transformers import TransformersBackend
from negawatt.errors import EngineError, UnsupportedSetting

for library in ("openvino", "openvino_genai", "nncf", "torch", "transformers"):
    pytest.importorskip(library)

PROMPTS = (
    "The capital of France is Paris, and the river through it is the Seine.",
    "Once upon a time there was a small",
    "Water boils at",
)


@pytest.fixture(scope="session")
def cache(model: Artifact) -> Path:
    """The engine's usual cache: making weights takes half a minute a format."""
    return model.cache / "openvino"


def loaded(model: Artifact, cache: Path, **settings: object) -> OpenVinoBackend:
    chosen = Settings(engine="openvino", threads=2).replace(**settings)
    backend = OpenVinoBackend(chosen)
    backend.load(OpenVinoBackend.prepare(model.path, chosen.weight_format, cache))
    return backend


@pytest.fixture(scope="module")
def prompts(model: Artifact) -> list[list[int]]:
    return [model.tokenizer.encode(text) for text in PROMPTS]


@pytest.fixture(scope="module")
def native(model: Artifact, cache: Path) -> OpenVinoBackend:
    return loaded(model, cache, batch=3, kv_cache=OpenVinoBackend.kv_caches[-1])  # not 8 bits


@pytest.fixture
def batch(native: OpenVinoBackend) -> Iterator[OpenVinoBackend]:
    yield native
    for slot in range(3):
        native.release(slot)


@pytest.fixture(scope="module")
def reference(
    model: Artifact, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> list[Logits]:
    """Logits after every position from transformers in fp32."""
    backend = TransformersBackend(Settings(threads=2))
    backend.load(backend.prepare(model.path, "fp32", tmp_path_factory.mktemp("cache")))
    return [whole(backend, tokens) for tokens in prompts]


def whole(backend: Backend, tokens: list[int]) -> Logits:
    """Logits after every token of one sequence in an empty slot."""
    (rows,) = backend.forward([Chunk(0, tokens, rows=len(tokens))])
    backend.release(0)
    return rows.copy()


def log_probabilities(rows: Logits) -> Logits:
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def gap(rows: Logits, other: Logits, tokens: list[int]) -> float:
    """Mean difference (nats) of the log-probability of each next token of a text."""
    place = np.arange(len(tokens) - 1), np.array(tokens[1:])
    return float(np.abs(log_probabilities(rows)[place] - log_probabilities(other)[place]).mean())


def divergence(rows: Logits, other: Logits) -> float:
    """Mean Kullback-Leibler divergence (nats) of `rows` from `other`."""
    p, q = log_probabilities(other), log_probabilities(rows)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def test_native_weights_are_the_files_own(
    batch: OpenVinoBackend, prompts: list[list[int]], reference: list[Logits]
) -> None:
    """Rounded offsets, as the reader leaves them, are ten times further away."""
    tokens = prompts[0]
    rows = whole(batch, tokens)
    assert gap(rows, reference[0], tokens) < 0.08
    assert divergence(rows, reference[0]) < 0.02


def test_a_batch_of_unequal_lengths_gives_each_sequence_its_own_logits(
    batch: OpenVinoBackend, prompts: list[list[int]]
) -> None:
    alone = [whole(batch, tokens) for tokens in prompts]
    together = batch.forward([Chunk(slot, tokens, rows=len(tokens)) for slot, tokens in enumerate(prompts)])
    for rows, own in zip(together, alone, strict=True):
        assert divergence(rows, own) < 0.01


def test_a_released_sequence_leaves_the_others_untouched(
    batch: OpenVinoBackend, prompts: list[list[int]]
) -> None:
    alone = [whole(batch, tokens)[-1:] for tokens in prompts]
    batch.forward([Chunk(slot, tokens[:-1]) for slot, tokens in enumerate(prompts)])
    batch.release(1)
    last = batch.forward([Chunk(slot, prompts[slot][-1:]) for slot in (2, 0)])
    for rows, slot in zip(last, (2, 0), strict=True):
        assert rows.shape == (1, batch.vocab_size)
        assert divergence(rows, alone[slot]) < 0.02


def test_tokens_taken_back_are_forgotten(batch: OpenVinoBackend, prompts: list[list[int]]) -> None:
    tokens = prompts[0]
    straight = whole(batch, tokens)
    batch.forward([Chunk(0, [*tokens[:4], 17, 18, 19])])
    batch.truncate(0, 4)
    (rows,) = batch.forward([Chunk(0, tokens[4:], rows=len(tokens) - 4)])
    assert divergence(rows, straight[4:]) < 0.01


def test_sequences_come_go_and_take_back_while_others_go_on(
    batch: OpenVinoBackend, prompts: list[list[int]]
) -> None:
    """Slots advance by unequal numbers of tokens, one is filled again, and pages of 32 tokens are crossed."""
    long = (prompts[0] * 5)[:75]
    straight = whole(batch, long)[-1:]
    batch.forward([Chunk(0, long[:20]), Chunk(1, prompts[1])])
    batch.forward([Chunk(0, long[20:50]), Chunk(1, [17, 18]), Chunk(2, prompts[2])])
    batch.truncate(1, len(prompts[1]))
    batch.release(2)
    rows, _, again = batch.forward([Chunk(0, long[50:]), Chunk(1, [19]), Chunk(2, long, rows=3)])
    assert divergence(rows, straight) < 0.02
    assert again.shape == (3, batch.vocab_size)
    assert divergence(again[-1:], straight) < 0.02


def test_more_tokens_than_one_step_takes(
    batch: OpenVinoBackend, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = prompts[0]
    straight = whole(batch, tokens)
    monkeypatch.setattr("negawatt.engine.openvino.TOKENS_PER_STEP", 5)
    first, second = batch.forward([Chunk(0, prompts[1]), Chunk(1, tokens, rows=len(tokens))])
    assert first.shape == (1, batch.vocab_size)
    assert divergence(second, straight) < 0.01


def test_a_sequence_that_does_not_fit_is_refused(batch: OpenVinoBackend) -> None:
    with pytest.raises(EngineError, match="does not fit max_context"):
        batch.forward([Chunk(0, [1] * (batch.settings.max_context + 1))])


@pytest.mark.parametrize(("weight_format", "most_nats"), [("int8", 0.05), ("int4-g32-asym", 1.0)])
def test_coarser_weights_are_near_and_coarser(
    model: Artifact,
    cache: Path,
    prompts: list[list[int]],
    reference: list[Logits],
    weight_format: str,
    most_nats: float,
) -> None:
    backend = loaded(model, cache, weight_format=weight_format)
    away = np.mean([divergence(whole(backend, t), r) for t, r in zip(prompts, reference, strict=True)])
    assert 1e-4 < away < most_nats


def test_the_cache_precision_asked_for_is_used(model: Artifact, cache: Path) -> None:
    assert loaded(model, cache, kv_cache="u8").info()["kv_cache"] == "u8"
    held = loaded(model, cache, kv_cache="f16").info()["kv_cache"]
    assert held in ("f16", "bf16")  # where matrices are multiplied in bf16, the pages hold that


def test_nothing_is_written_beside_the_model(model: Artifact, cache: Path) -> None:
    OpenVinoBackend.prepare(model.path, "native", cache)
    assert not list(model.path.glob("openvino*"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Settings(weight_format="int4-g128-sym"), "'int4-g128-sym'; it has native, f16, int8"),
        (Settings(kv_cache="q4"), "'q4'; it has default"),
        (Settings(flash_attention=False), "no flash-attention switch"),
    ],
)
def test_what_it_lacks_is_refused_by_name(settings: Settings, named: str) -> None:
    with pytest.raises(UnsupportedSetting, match=named):
        OpenVinoBackend(settings)


def test_a_damaged_model_gets_a_sentence_and_nothing_stays(tmp_path: Path, model: Artifact) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "openvino_model.xml").write_text("<net>")
    with pytest.raises(EngineError, match=r"openvino cannot load .*damaged"):
        OpenVinoBackend(Settings()).load(folder)


def test_an_architecture_it_cannot_read_gets_a_sentence(tmp_path: Path) -> None:
    import gguf

    source = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(source, "perceptron9")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match=r"'perceptron9', and OpenVINO GenAI reads llama"):
        OpenVinoBackend.prepare(source, "f16", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
