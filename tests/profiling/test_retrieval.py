"""Search measured: vectors by definition, joules of queries and documents apart, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.errors import EngineError, WorkloadError
from negawatt.profiling import Profile, profile
from negawatt.profiling.profiler import judge_artifact
from negawatt.profiling.quality import answered
from negawatt.profiling.retrieval import Index, document_tokens, query_tokens
from negawatt.profiling.window import FEW_DOCUMENTS, QUESTIONS, completions_of, measure, warm_up
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_search
from negawatt.workload import ChooseItem, Corpus, Document, Ranked, RetrieveItem, Workload
from negawatt.workload.items import queries_among

SETTINGS = Settings("transformers", weight_format="fp32", threads=1, max_context=96)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("encoder") / "bert", "bert"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """Two queries for each document that is embedded."""
    return Workload.open(small_search(tmp_path_factory.mktemp("words"), more="queries_per_document = 2\n"))


@pytest.fixture(scope="module")
def found(encoder: Artifact, words: Workload, fresh_cache: Path) -> Profile:
    return profile(encoder, words, SETTINGS, rounds=2)


@pytest.fixture(scope="module")
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home without anything that was embedded before."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGAWATT_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def engine(encoder: Artifact) -> Iterator[Engine]:
    with Engine(encoder, SETTINGS.replace(batch=4)) as engine:
        yield engine


def test_what_is_found_is_nearest_by_cosine(engine: Engine, words: Workload) -> None:
    assert words.corpus is not None
    queries = queries_among(words.quality)[:6]
    index = Index.of(engine, words.corpus)
    told = answered(engine, queries, index)
    asked = engine.embed(query_tokens(engine.artifact, engine.settings, queries)).vectors
    stored = engine.embed(document_tokens(engine.artifact, engine.settings, words.corpus.documents)).vectors
    cosines = [[q @ d / np.linalg.norm(q) / np.linalg.norm(d) for d in stored] for q in asked]
    names = [document.id for document in words.corpus.documents]
    for row, response in zip(cosines, told.responses, strict=True):
        assert isinstance(response, Ranked) and len(response.documents) == 10
        likeness = [row[names.index(name)] for name in response.documents]
        assert likeness == pytest.approx(sorted(row, reverse=True)[:10], abs=1e-4)
    assert told.fed == tuple(map(len, query_tokens(engine.artifact, engine.settings, queries)))


def test_joules_of_queries_and_documents_add_up(found: Profile) -> None:
    document = found.to_json()
    assert document["unit"] == "answer"
    texts = document["texts"]
    assert texts["query"]["texts"] == 2 * QUESTIONS and texts["document"]["texts"] == 2 * FEW_DOCUMENTS
    assert (texts["query"]["per_answer"], texts["document"]["per_answer"]) == (1.0, 0.5)
    whole = found.summary.energy.value_j
    assert sum(t["texts"] * t["energy_per_text"]["value_j"] for t in texts.values()) == pytest.approx(whole)
    for figure, of in (("cpu_s_per_token", "cpu_s_per_text"), ("energy_per_token", "energy_per_text")):
        per = [t[of] if of == "cpu_s_per_text" else t[of]["value_j"] for t in texts.values()]
        told = document[figure] if figure == "cpu_s_per_token" else document[figure]["value_j"]
        assert told == pytest.approx(per[0] + per[1] / 2)
    assert found.summary.prompted == sum(step.tokens for step in found.summary.steps)
    assert sum(part.cpu_s for part in found.summary.parts.values()) == pytest.approx(found.summary.cpu_s)


def test_quality_is_judged_query_by_query(found: Profile, words: Workload) -> None:
    quality = found.quality
    assert quality is not None and quality.metric == "ndcg@10"
    assert set(quality.scores) == {item.id for item in words.quality}
    assert quality.interval.value > 0.4  # chance is below 0.1; mean vectors of the same words are alike
    assert len(set(quality.scores.values())) > 2


def test_vectors_that_are_kept_are_read_back(found: Profile, words: Workload, fresh_cache: Path) -> None:
    (file,) = (fresh_cache / "cache").rglob("corpus/*.npy")
    assert words.corpus is not None and found.quality is not None
    kept = Index.read(file, words.corpus)
    assert kept is not None and np.allclose(np.linalg.norm(kept.vectors, axis=1), 1, atol=1e-5)
    other = Corpus(words.corpus.documents[:20], 1.0)
    assert Index.read(file, other) is None
    torn = file.with_name("torn.npy")
    torn.write_bytes(file.read_bytes()[:-50])
    assert Index.read(torn, words.corpus) is None


def test_without_relevant_documents_neighbours_are_compared(
    found: Profile, encoder: Artifact, tmp_path: Path
) -> None:
    """The reference's vectors of the same documents are there already, and are not made again."""
    unknown = Workload.open(small_search(tmp_path / "unknown", known=False))
    said: list[str] = []

    def progress(done: float, total: float | None, text: str) -> None:
        said.append(text)

    assert judge_artifact(encoder, SETTINGS, unknown, 12, progress) is None  # the reference is itself
    assert not said
    rounded = SETTINGS.replace(weight_format="bf16")
    quality = judge_artifact(encoder, rounded, unknown, 12, progress)
    embedded = [text for text in said if text.endswith(": 48 of 48 documents")]
    assert embedded == ["embedding with transformers bf16: 48 of 48 documents"]
    assert quality is not None and quality.metric == "overlap@10" and len(quality.scores) == 12
    assert 0.6 < quality.interval.value <= 1.0
    assert all(round(10 * score) == pytest.approx(10 * score) for score in quality.scores.values())


def test_latencies_are_those_of_queries_alone(engine: Engine, words: Workload) -> None:
    queries = queries_among(words.quality)[:3]
    warm_up(engine, queries[0])
    assert len(completions_of(engine, queries)) == 3
    window = measure(engine, queries)
    assert len(window.completions) == 3 and window.outputs == (1, 1, 1, 0, 0, 0)
    assert all(0 < c.token_times_s[0] <= window.wall_s for c in window.completions)


@pytest.fixture(scope="module")
def long() -> Corpus:
    return Corpus((Document("short", "rain"), Document("long", "rain " * 400)), 1.0)


def test_what_does_not_fit_is_named(encoder: Artifact, long: Corpus, small: Artifact) -> None:
    with pytest.raises(WorkloadError, match=r"document 'long' holds \d+ tokens, and bert reads at most 96"):
        document_tokens(encoder, SETTINGS, long.documents)
    with pytest.raises(WorkloadError, match=r"query 'q' holds \d+ tokens"):
        query_tokens(encoder, SETTINGS, [RetrieveItem("q", "rain " * 400, ("short",), long)])
    with pytest.raises(WorkloadError, match="turns no texts into vectors"):
        document_tokens(small, SETTINGS, long.documents)
    with pytest.raises(EngineError, match="NaN"):
        Index(long, np.eye(2, dtype=np.float32)).nearest(np.full((1, 2), np.nan, np.float32))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("writer") / "llama"))


def test_an_encoder_answers_nothing_else(engine: Engine) -> None:
    other = ChooseItem("which", "context", ("a", "b"), 0)
    with pytest.raises(WorkloadError, match="embeds texts, which does not answer item 'which'"):
        answered(engine, [other])
