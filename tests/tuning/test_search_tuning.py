"""A search over ways of embedding: proved query by query, kept, and served by what was kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.compress import Source
from negawatt.compress.calibration import pieces_of
from negawatt.engine import Engine, Settings
from negawatt.errors import UsageError, WorkloadError
from negawatt.report import render
from negawatt.serve import Caller, OpenGate
from negawatt.serve.config import ModelConfig
from negawatt.serve.footprint import Footprint
from negawatt.serve.launch import served
from negawatt.serve.server import Server
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_search
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.material import Material
from negawatt.tuning.models import refuse_longer
from negawatt.workload import Workload
from negawatt.workload.items import queries_among
from negawatt.workload.writer import write_workload

SETTINGS = Settings(engine="transformers", weight_format="fp32", threads=1, max_context=96)
POOLED = '[{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": ' + (
    '"sentence_transformers.models.Pooling", "path": "1_Pooling"}]'
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that says in a folder of its own how it pools: by the mean of all tokens, of any length."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    return pooled(small_model(tmp_path_factory.mktemp("encoder") / "wide", "bert", **wide))


def pooled(folder: Path) -> Path:
    """The model, with files that say how it pools."""
    (folder / "modules.json").write_text(POOLED)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return Workload.open(small_search(tmp_path_factory.mktemp("words"), 120))


@pytest.fixture(scope="module")
def result(encoder: Path, words: Workload, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    space = Space(("openvino", "llamacpp"), (1,), (1,), 96, {"openvino": ("f16",)})
    return tune(
        Artifact.open(encoder), words, space=space, baseline=SETTINGS, time_budget_s=60,
        constraints=Constraints(max_quality_drop=0.15), path=tmp_path_factory.mktemp("run") / "run",
    )  # fmt: skip


def test_a_cheaper_way_is_proved_on_queries_it_never_saw(result: dict[str, Any]) -> None:
    assert result["verdict"]["accepted"], result["verdict"]["text"]
    assert result["best"]["settings"]["engine"] == "openvino" and result["verdict"]["ratio"]["low"] > 1
    assert "fewer joules per answer than" in result["verdict"]["text"]
    drop = result["best"]["quality_drop"]
    assert drop["upper_one_sided"] <= 0.15 and drop["n"] >= 40
    assert result["best"]["quality"]["metric"] == "ndcg@10"
    for document in (result["baseline"], result["best"]):
        texts = document["texts"]
        per_answer = sum(t["cpu_s_per_text"] * t["per_answer"] for t in texts.values())
        assert set(texts) == {"query", "document"}
        assert document["cpu_s_per_token"] == pytest.approx(per_answer)
    steps = {step["label"] for step in result["phases"]}
    assert steps == {f"{side}: {kind}" for side in ("baseline", "best") for kind in ("query", "document")}
    assert "ndcg@10" in render(Path(result["run"]), "markdown")


def test_what_was_kept_is_served(result: dict[str, Any], encoder: Path, words: Workload) -> None:
    """With the vectors of the engine that was chosen, from the weights that it made."""
    kept = Artifact.open(result["artifact"])
    pooling = kept.pooling()
    assert pooling is not None and (pooling.modes, pooling.normalized) == (("mean",), False)
    texts = [item.query for item in queries_among(words.quality)[:5]]
    settings = Settings.from_json(result["best"]["settings"])
    with Engine(Artifact.open(encoder), settings) as engine:
        expected = engine.embed([kept.tokenizer.encode(t, add_special=True) for t in texts]).vectors

    async def answer() -> list[Any]:
        model = served(ModelConfig(result["run"], name="found"), lambda receipt: None, Footprint())
        server = Server([model], OpenGate())
        await server.start()
        try:
            body = {"model": "found", "input": texts}
            told = await server.answer(Caller(), "/v1/embeddings", body)
        finally:
            await server.stop()
        return [entry["embedding"] for entry in told["data"]]

    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(asyncio.run(answer()), expected, atol=2e-3 * scale)


def test_the_space_is_that_of_encoders_and_others_are_refused(
    encoder: Path, words: Workload, tmp_path: Path
) -> None:
    space = Space.default(only=["llamacpp", "openvino", "transformers"]).of_embedders()
    assert space.engines == ("openvino", "transformers")
    assert all(p.settings.kv_cache == "default" and p.settings.speculation == "none" for p in space.grid())
    with pytest.raises(UsageError, match="llamacpp runs no models that embed; onnxruntime, openvino, "):
        Space.default(only=["llamacpp"]).of_embedders()
    writer = small_model(tmp_path / "writer")
    with pytest.raises(UsageError, match="searches documents by their vectors, and writer turns no texts"):
        tune(Artifact.open(writer), words, baseline=SETTINGS)
    with pytest.raises(UsageError, match="and writer turns no texts"):
        tune(Artifact.open(encoder), words, baseline=SETTINGS, models=[str(writer)])


def test_a_query_that_its_prompt_makes_too_long_is_named_before_the_search(
    words: Workload, tmp_path: Path
) -> None:
    folder, run = pooled(small_model(tmp_path / "asked", "bert")), tmp_path / "run"
    space = Space.default(only=["transformers"], max_context=96).of_embedders()
    refuse_longer([Artifact.open(folder)], words, space)  # without a prompt all queries fit
    prompts = {"default_prompt_name": "query", "prompts": {"query": "rain " * 90}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with pytest.raises(WorkloadError, match=r"query 'query-0' holds \d+ tokens, and asked reads at most 96"):
        tune(Artifact.open(folder), words, space=space, baseline=SETTINGS, path=run)
    assert not run.exists()


def test_the_search_and_the_proof_share_the_corpus_and_no_query(words: Workload) -> None:
    material = Material.of(words, Space.default(only=["transformers"]).of_embedders(), 0)
    searched, held = ({item.id for item in part} for part in (material.search_items, material.held_items))
    assert not searched & held and len(searched) == 40
    assert not {item.id for item in material.usage.quality} & held
    assert material.usage.corpus == words.corpus


def test_passes_are_calibrated_on_queries_and_documents(
    encoder: Path, words: Workload, tmp_path: Path
) -> None:
    source = Source.of(Artifact.open(encoder))
    _, pieces, _ = pieces_of(source, str(write_workload(words, tmp_path / "words")), seed=0)
    asked, _ = words.split(0.5, 0)
    assert words.corpus is not None and len(pieces) == len(asked.quality) == 60
    texts = {document.text for document in words.corpus.documents}
    for piece, item in zip(pieces, queries_among(asked.quality), strict=True):
        query, document, _ = piece.text.split("\n\n")
        assert query == item.query and document in texts
