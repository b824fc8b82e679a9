"""Engines that embed keep the contract, on encoders and on models that were made to write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.artifact.pooling import pooling_of
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings
from negawatt.engine.backend import Chunk
from negawatt.engine.openvino_integers import sums_are_exact
from negawatt.engine.transformers import TransformersBackend
from negawatt.errors import ArtifactError, UnsupportedSetting, UsageError
from negawatt.testing import EmbedderContract
from negawatt.testing.small_models import TEXT, small_model

SETTINGS = Settings(engine="transformers", weight_format="fp32")


class TestMiniLm(EmbedderContract):
    """The real model, whose files name its pooling."""

    @pytest.fixture(scope="class")
    def embedder(self) -> Artifact:
        return Artifact.open("minilm-l6")

    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return SETTINGS


class _SmallBert(EmbedderContract):
    @pytest.fixture(scope="class")
    def embedder(self, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
        folder = small_model(tmp_path_factory.mktemp("bert"), "bert")
        say(folder, {"pooling_mode": "mean"}, normalize=True)
        return Artifact.open(folder)


class TestOnnxRuntime(_SmallBert):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="onnxruntime", weight_format="fp32")


class TestOpenVino(_SmallBert):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="openvino", weight_format="f16")


class TestOpenVinoInIntegers(EmbedderContract):
    """Weights and inputs in 8 bits, calibrated on a text; transformers rounds alike, in floats."""

    tolerance = 0.03

    @pytest.fixture(scope="class")
    def embedder(self, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
        folder = tmp_path_factory.mktemp("rounded")
        say(small_model(folder / "m", "mpnet", pad_token_id=1), {"pooling_mode": "mean"}, normalize=True)
        (folder / "text.txt").write_text(TEXT * 4, "utf-8")
        steps = (parse("smoothquant:tolerance=1"),)
        recipe = Recipe(str(folder / "m"), steps, str(folder / "text.txt"), windows=4, heldout=2, length=64)
        compress(recipe, folder / "made", keep_worse=True)
        return Artifact.open(folder / "made")

    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="openvino")

    @pytest.fixture(scope="class")
    def expected(self, embedder: Artifact, settings: Settings, texts: list[list[int]]) -> list[list[float]]:
        with Engine(embedder, SETTINGS.replace(weight_format="native")) as reference:
            assert reference.info["rounded"] == 3 * 6
            return [[float(x) for x in row] for row in reference.embed(texts).vectors]

    def test_integers_are_multiplied(self, engine: Engine) -> None:
        found = [n for name, n in engine.info["kernels"].items() if name.endswith("_i8")]
        assert sum(found) == (3 * 6 if sums_are_exact() else 0)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("mpnet", ("cls", "max")),
        ("mpnet", ("mean_sqrt_len_tokens",)),
        ("qwen3", ("lasttoken",)),
        ("llama", ("weightedmean", "mean")),
    ],
)
def test_every_pooling_is_what_it_says(family: str, pooling: tuple[str, ...], tmp_path: Path) -> None:
    """Of several lengths in one step, against each text's own states, pooled by definition."""
    import torch
    import transformers

    folder = small_model(tmp_path, family, **({"pad_token_id": 1} if family == "mpnet" else {}))
    say(folder, {"pooling_mode": list(pooling)})
    backend = TransformersBackend(SETTINGS.replace(batch=3, threads=1))
    backend.load(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [[5, 9, 200, 31], [40] * 30 + [3], [300]]
    rows = backend.forward([Chunk(slot, text) for slot, text in enumerate(texts)])
    for text, row in zip(texts, rows, strict=True):
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([text])).last_hidden_state[0].numpy()
        place = np.arange(1, len(text) + 1)[:, None]
        ways = {
            "mean": states.mean(axis=0), "cls": states[0], "lasttoken": states[-1],
            "max": states.max(axis=0), "weightedmean": (states * place).sum(axis=0) / place.sum(),
            "mean_sqrt_len_tokens": states.sum(axis=0) / np.sqrt(len(text)),
        }  # fmt: skip
        np.testing.assert_allclose(row[0], np.concatenate([ways[mode] for mode in pooling]), atol=2e-4)


def say(folder: Path, pooling: dict[str, object], *, normalize: bool = False) -> None:
    """Write what sentence-transformers would beside a model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_what_the_files_say_goes_before_a_rule(tmp_path: Path) -> None:
    config = {"architectures": ["BertModel"], "max_position_embeddings": 512, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain = pooling_of(tmp_path)
    assert plain is not None and (plain.modes, plain.normalized, plain.width) == (("mean",), True, 8)
    say(tmp_path, {"pooling_mode": "lasttoken"})
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    said = pooling_of(tmp_path)
    assert said is not None and (said.modes, said.normalized) == (("lasttoken",), False)
    assert said.max_tokens == 256 and said.dimensions == ()
    asked = pooling_of(tmp_path, "cls")
    assert asked is not None and asked.modes == ("cls",) and asked.max_tokens == 256
    (tmp_path / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [2, 4]}))
    trained = pooling_of(tmp_path)
    assert trained is not None and trained.dimensions == (2, 4)


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        ({"pooling_mode": "loudest"}, "loudest"),
        ({}, "nothing"),
        ({"pooling_mode": "mean", "include_prompt": False}, "prompts"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, pooling: dict[str, object], said: str) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    say(tmp_path, pooling)
    with pytest.raises(ArtifactError, match=said):
        pooling_of(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1] |= {"path": "../elsewhere"}
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ArtifactError, match="out of its folder"):
        pooling_of(tmp_path)
    modules[1] |= {"type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ArtifactError, match="Dense"):
        pooling_of(tmp_path)


def test_a_writer_embeds_only_when_asked(model: Artifact) -> None:
    assert model.pooling() is None
    with pytest.raises(UsageError, match="pooling is default"):
        Settings(pooling="loudest")
    with pytest.raises(UnsupportedSetting, match="llamacpp makes no embeddings"):
        Engine(model, Settings(engine="llamacpp", pooling="mean"))
