"""Distilling: what a student learns, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, classifier, compress, parse
from negawatt.compress.labelled import labelled
from negawatt.compress.source import Source
from negawatt.compress.teacher import divergence
from negawatt.compress.text_model import TextModel
from negawatt.compress.training import batches, checkpoints, rate_at
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import ArtifactError, EngineError, NegawattError, UsageError, WorkloadError
from negawatt.profiling import profile
from negawatt.profiling.quality import judged
from negawatt.profiling.window import QUESTIONS
from negawatt.testing.small_models import TEXT, small_model
from negawatt.testing.small_workload import small_workload
from negawatt.workload import Workload

torch = pytest.importorskip("torch")


def made(model: Path, passes: str, text: Path, output: Path) -> dict[str, Any]:
    techniques = tuple(map(parse, passes.split()))
    recipe = Recipe(str(model), techniques, str(text), windows=4, heldout=2, length=64, threads=1)
    return compress(recipe, output)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_workload(tmp_path_factory.mktemp("texts"), 120)


@pytest.fixture(scope="module")
def teacher(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of another family than its students, with tokens of its own numbering."""
    folder = tmp_path_factory.mktemp("teacher")
    small_model(folder / "encoder", "mpnet", seed=1)
    made(folder / "encoder", "classifier:epochs=4,batch=8,rate=0.001,frozen=1", texts, folder / "made")
    return folder / "made"


@pytest.fixture(scope="module")
def student(teacher: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    small_model(folder / "encoder", "bert", num_hidden_layers=2)
    made(
        folder / "encoder",
        f"distil:teacher={teacher},labels=0,epochs=6,batch=8,rate=0.001",
        texts,
        folder / "made",
    )
    return folder / "made"


def test_a_classifier_is_profiled_by_the_answer(teacher: Path, texts: Path) -> None:
    settings = Settings(batch=4, threads=1, max_context=64)
    found = profile(str(teacher), str(texts), settings, rounds=2, requests_per_round=4)
    assert found.summary.unit == "answer" and found.summary.generated == 2 * QUESTIONS
    assert found.quality is not None and found.quality.interval.value > 0.8


# -- classifiers -------------------------------------------------------------------------------------


def test_a_student_learns_from_the_teachers_answers_alone(student: Path, teacher: Path) -> None:
    step = Artifact.open(student).lineage[-1]
    assert step["quality"]["metric"] == "accuracy"
    assert step["quality"]["before"] is None  # it had no head
    assert step["quality"]["after"] > 0.8
    assert step["outcome"]["teacher"]["agrees_with_labels"] > 0.8
    assert step["outcome"]["teacher_sha256"] == Artifact.open(teacher).sha256
    assert step["outcome"]["loss_last"] < step["outcome"]["loss_first"]


def test_an_engine_runs_it_and_charges_for_it(student: Path, texts: Path) -> None:
    workload = Workload.open(texts).split(0.8, 0)[1]
    with Engine(Artifact.open(student), Settings(batch=4, threads=1, max_context=64)) as engine:
        assert engine.labels == ("cold", "warm")
        tokens = [engine.artifact.tokenizer.encode(i.prompt, add_special=True) for i in workload.quality]
        together = engine.classify(tokens)
        alone = [engine.classify([text]).log_probs[0] for text in tokens]
        assert torch.tensor(together.log_probs).exp().sum(1) == pytest.approx(1.0, abs=1e-5)
        assert abs(together.log_probs - alone).max() < 1e-4  # padding changes nothing
        assert sum(s.sequences for s in together.steps) == len(tokens)
        assert sum(s.tokens for s in together.steps) == sum(map(len, tokens))
        assert 0 < sum(s.cpu_s for s in together.steps) <= together.usage.cpu_s * 1.001
        quality = judged(engine, workload.quality, workload.metrics)
    assert quality.interval.value == Artifact.open(student).lineage[-1]["quality"]["after"]


def test_an_engine_runs_a_family_without_fused_attention(teacher: Path) -> None:
    with Engine(Artifact.open(teacher), Settings(batch=2, threads=1, max_context=64)) as engine:
        assert engine.info["architecture"] == "MPNetForSequenceClassification"
        assert engine.info["attention"] == "eager"
        assert engine.classify([[5, 6, 7], [8]]).log_probs.shape == (2, 2)


def test_engines_refuse_what_a_model_is_not_for(student: Path, texts: Path, tmp_path: Path) -> None:
    with Engine(Artifact.open(student), Settings(max_context=64)) as engine:
        with pytest.raises(EngineError, match="tells cold, warm apart and cannot write"):
            engine.generate([Request([1, 2], 2)])
        with pytest.raises(EngineError, match="at least one token"):
            engine.classify([[]])
        with pytest.raises(EngineError, match="max_context"):
            engine.classify([[1] * 65])
        other = small_workload(tmp_path / "other", labels=("hot", "cold"))
        with pytest.raises(WorkloadError, match="does not answer item"):
            judged(engine, Workload.open(other).quality, {"classify": "accuracy"})
    with Engine(Artifact.open(small_model(tmp_path / "llama")), Settings(max_context=64)) as engine:
        with pytest.raises(EngineError, match="writes text and cannot classify"):
            engine.classify([[1]])


def test_later_passes_are_judged_by_accuracy(student: Path, texts: Path, tmp_path: Path) -> None:
    document = made(student, "rtn:bits=8,group=32", texts, tmp_path / "out")
    quality = document["passes"][0]["quality"]
    assert quality["metric"] == "accuracy"
    assert quality["before"] == Artifact.open(student).lineage[-1]["quality"]["after"]
    assert abs(quality["after"] - quality["before"]) < 0.2


def test_training_goes_on_from_a_head_that_is_there(student: Path, texts: Path, tmp_path: Path) -> None:
    document = made(student, "classifier:epochs=1,batch=8,rate=0.0001", texts, tmp_path / "out")
    assert document["passes"][0]["quality"]["before"] is not None


def test_pieces_are_runs_of_words_without_labels(texts: Path) -> None:
    learnt, _ = labelled(str(texts), 0)
    more = learnt.with_pieces(2, seed=1)
    pieces = more.texts[len(learnt.texts) :]
    assert more.texts[: len(learnt.texts)] == learnt.texts
    assert len(pieces) == 2 * len(learnt.texts)
    assert set(more.answers[len(learnt.texts) :]) == {-1}
    assert all(piece and piece in learnt.texts[i // 2] for i, piece in enumerate(pieces))
    assert learnt.with_pieces(2, seed=1) == more
    assert learnt.with_pieces(0, seed=1) == learnt


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_blocks_that_are_run_once_change_nothing(family: str, texts: Path, tmp_path: Path) -> None:
    made(small_model(tmp_path / "model", family), "classifier:epochs=1", texts, tmp_path / "made")
    source = Source.of(Artifact.open(tmp_path / "made"))
    rows = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
    model = TextModel(source)
    with model.network.whole(torch.float32) as module, torch.no_grad():
        whole, mean = model.run(module, rows, with_hidden=True)
        for blocks in range(4):
            given = model.given(module, rows, blocks) if blocks else []
            with model.beginning_at(blocks) as give:
                give(given)
                found, _ = model.run(module, rows)
            assert (found - whole).abs().max() < 1e-5
    assert mean is not None
    assert mean.shape == (3, 64)
    alone = model.answers(rows[1:2], with_hidden=True)
    assert (alone["logits"][0] - whole[1]).abs().max() < 1e-5
    assert (alone["hidden"][0] - mean[1]).abs().max() < 1e-5  # padding is no part of a mean


# -- decoders ----------------------------------------------------------------------------------------


def test_a_decoder_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 4, "utf-8")
    teacher = small_model(tmp_path / "teacher", "llama")
    small_model(tmp_path / "model", "llama", num_hidden_layers=2)
    step = made(
        tmp_path / "model", f"distil:teacher={teacher},epochs=40,rate=0.001,top_k=32", text, tmp_path / "out"
    )["passes"][0]
    assert step["outcome"]["loss_last"] < 0.9 * step["outcome"]["loss_first"]
    assert 0.1 < step["outcome"]["teacher"]["probability_kept"] < 1


def test_the_divergence_of_kept_tokens_is_part_of_the_whole() -> None:
    theirs, ours = torch.randn(5, 40), torch.randn(5, 40)
    for heat in (1.0, 3.0):
        logs = (theirs / heat).log_softmax(-1)
        whole = torch.nn.functional.kl_div(
            (ours / heat).log_softmax(-1), logs, reduction="batchmean", log_target=True
        ) * heat**2  # fmt: skip

        def kept(k: int, logits: Any, logs: Any = logs, heat: float = heat) -> float:
            best = logs.topk(k, dim=-1)
            others = (1 - best.values.double().exp().sum(-1)).clamp_min(1e-12).log().float()
            return float(divergence(logits, best.indices.int(), best.values, others, heat))

        assert kept(40, ours) == pytest.approx(float(whole), rel=1e-4)
        assert 0 < kept(1, ours) <= kept(10, ours) <= float(whole) * 1.0001
        assert kept(10, theirs) == pytest.approx(0, abs=1e-5)


# -- training ----------------------------------------------------------------------------------------


def test_every_text_is_seen_once_an_epoch_and_little_is_padded() -> None:
    lengths = [3 + (7 * i) % 40 for i in range(103)]
    steps = batches(lengths, 8, 3, seed=5)
    seen = sorted(i for step in steps for i in step)
    assert seen == sorted(3 * list(range(103)))
    padding = sum(max(lengths[i] for i in s) * len(s) for s in steps) / (3 * sum(lengths))
    assert padding < 1.25
    assert batches(lengths, 8, 3, seed=5) == steps


def test_checkpoints_are_neither_rare_nor_many() -> None:
    for steps in (1, 16, 17, 500, 9999):
        ends = checkpoints(steps)
        assert ends[-1] == steps
        assert len(ends) <= 16
        assert ends == sorted(set(ends))
    assert rate_at(0, 100, 1.0) == pytest.approx(0.1)
    assert rate_at(99, 100, 1.0) < 0.001


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("technique", "family", "sentence"),
    [
        ("distil", "bert", "name the model to learn from, with teacher=MODEL"),
        ("distil:teacher={encoder}", "bert", "is no classifier; make one of it first"),
        ("distil:teacher={encoder}", "llama", "is no decoder, and cannot teach"),
        ("distil:teacher={decoder},frozen=1", "llama", "frozen is for encoders"),
        ("classifier", "llama", "gives encoders a head, and model is a decoder"),
        ("classifier", "t5", "a head is given to encoders alone"),
        ("classifier:frozen=9", "bert", "9 blocks cannot stay frozen, model has 3"),
    ],
)
def test_models_that_do_not_fit(
    technique: str, family: str, sentence: str, texts: Path, tmp_path: Path
) -> None:
    others = {
        kind: small_model(tmp_path / kind, name)
        for kind, name in (("encoder", "mpnet"), ("decoder", "llama"))
    }
    model = small_model(tmp_path / "model", family)
    with pytest.raises(UsageError, match=sentence):
        made(model, technique.format(**others), texts, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_teachers_that_do_not_fit(teacher: Path, texts: Path, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "bert")
    other = small_workload(tmp_path / "texts", labels=("hot", "cold"))
    with pytest.raises(UsageError, match="tells cold, warm apart, and the texts are labelled cold, hot"):
        made(model, f"distil:teacher={teacher}", other, tmp_path / "out")
    with pytest.raises(ArtifactError, match="begin with the encoder"):
        made(teacher, "classifier", other, tmp_path / "out")
    with pytest.raises(ArtifactError, match="there is no"):
        made(model, f"distil:teacher={tmp_path}/nowhere", texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_that_do_not_fit(texts: Path, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "bert")
    plain = tmp_path / "plain.txt"
    plain.write_text(TEXT * 4, "utf-8")
    with pytest.raises(UsageError, match="learns from labelled texts"):
        made(model, "classifier", plain, tmp_path / "out")
    mixed = small_workload(tmp_path / "mixed")
    lines = (mixed / "items.jsonl").read_text("utf-8").replace('"warm", "cold"', '"warm", "cold", "wet"', 1)
    (mixed / "items.jsonl").write_text(lines, "utf-8")
    with pytest.raises(WorkloadError, match="differ in their labels: cold, warm and cold, warm, wet"):
        labelled(str(mixed), 0)


def test_a_training_that_falls_apart_says_so(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(tmp_path / "model", "bert")
    monkeypatch.setattr(classifier, "_labels_alone", lambda logits, *rest: logits.sum() * float("inf"))
    with pytest.raises(NegawattError, match=r"no number any more; lower the rate from 0\.01"):
        made(model, "classifier:rate=0.01", texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
