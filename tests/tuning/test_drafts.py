"""A draft model as a choice of the search: where it is offered, refused, told, and kept with the winner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negawatt import report
from negawatt.artifact import Artifact
from negawatt.catalog.hashing import sha256_of
from negawatt.cli.profile import command as profile_command
from negawatt.cli.settings import settings_from
from negawatt.cli.tune import asked_of
from negawatt.cli.tune import command as tune_command
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import UsageError
from negawatt.run import Run
from negawatt.serve.config import ModelConfig
from negawatt.serve.footprint import Footprint
from negawatt.serve.launch import served
from negawatt.testing.small_models import small_model
from negawatt.tuning import Space, tune
from negawatt.tuning.ablation import path
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.drafts import with_drafts
from negawatt.tuning.kept import keep
from negawatt.tuning.models import space_of
from negawatt.tuning.pass_range import PassRange
from negawatt.tuning.space_file import read_space
from negawatt.workload import Workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)
SPACE = Space(
    ("llamacpp", "transformers"), (1, 4), (1,), 96,
    {"llamacpp": ("q8_0",), "transformers": ("fp32",)}, kv_caches={"llamacpp": ("default",)},
    drafts=("small", "./other:q4_0"),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("in_home_with_engines")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("draft") / "tiny", num_hidden_layers=1))


# -- the space ----------------------------------------------------------------------------------------


def test_drafts_are_offered_where_an_engine_runs_them_at_batch_1() -> None:
    points = list(SPACE.grid())
    drafted = [p.settings for p in points if p.settings.draft]
    assert {s.draft for s in drafted} == {"small", "./other:q4_0"}
    assert {(s.engine, s.batch) for s in drafted} == {("llamacpp", 1)}
    assert len(drafted) == 2
    assert len(points) == len(set(points))
    for point in points:
        chosen = SPACE.parameters(point)
        assert SPACE.pick(lambda name, _, chosen=chosen: chosen[name]) == point
    assert not any(p.settings.draft for p in SPACE.starts())


def test_a_pass_that_changes_the_tokens_leaves_no_drafts() -> None:
    passes = (PassRange.parse("vocabulary"), PassRange.parse("depth:ratio=0.5"))
    points = list(replace(SPACE, passes=passes).grid())
    assert {p.names for p in points if p.settings.draft} == {(), ("depth",)}


def test_a_file_names_drafts(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('schema = 1\ndrafts = ["a", "b:q8_0", "a"]')
    assert read_space(file, SPACE).drafts == ("a", "b:q8_0")
    file.write_text("schema = 1")
    assert read_space(file, SPACE).drafts == SPACE.drafts
    file.write_text('schema = 1\ndrafts = "a"')
    with pytest.raises(UsageError, match="drafts must be a list of words"):
        read_space(file, SPACE)


def test_the_command_line_names_drafts() -> None:
    context = tune_command.make_context("tune", ["m", "--draft", "a", "--draft", "b:q8_0"])
    assert asked_of(context.params)["space"].drafts == ("a", "b:q8_0")
    options = profile_command.make_context(
        "profile", ["m", "--engine", "llamacpp", "--draft", "a:q4_0"]
    ).params
    settings = settings_from(dict(options))
    assert (settings.speculation, settings.draft) == ("draft a:q4_0", "a:q4_0")
    options = profile_command.make_context("profile", ["m", "--speculation", "ngram", "--draft", "a"]).params
    with pytest.raises(UsageError, match="proposes nothing"):
        settings_from(dict(options))


# -- before anything is spent -------------------------------------------------------------------------


def test_drafts_are_named_for_good(
    small: Artifact, draft: Artifact, lines: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(draft.path.parent)
    space = with_drafts(replace(SPACE, drafts=("./tiny:q8_0", "tiny", "./tiny")), [small], lines)
    assert space.drafts == (f"{draft.path}:q8_0", str(draft.path))


def test_drafts_that_cannot_propose_are_refused(small: Artifact, draft: Artifact, lines: Workload) -> None:
    space = replace(SPACE, drafts=(str(draft.path),))
    with pytest.raises(UsageError, match="transformers cannot run a draft model"):
        with_drafts(replace(space, engines=("transformers",)), [small], lines)
    with pytest.raises(UsageError, match="at batch 1 only"):
        with_drafts(replace(space, batches=(4,)), [small], lines)
    with pytest.raises(UsageError, match="not sent to the machines"):
        with_drafts(space, [small], lines, cluster=True)


def test_a_draft_that_cuts_text_otherwise_is_refused(
    draft: Artifact, lines: Workload, model: Artifact
) -> None:
    space = replace(SPACE, drafts=(str(draft.path),))
    with pytest.raises(UsageError, match=f"the draft tiny cuts text into other tokens than {model.name};"):
        with_drafts(space, [model], lines)


def test_a_classifier_writes_nothing_that_could_be_proposed(lines: Workload, tmp_path: Path) -> None:
    classifier = Artifact.open(small_model(tmp_path / "judge", "bert", labels=("dull", "fine")))
    with pytest.raises(UsageError, match="judge writes no text here"):
        space_of([classifier], lines, SPACE)


# -- the way to it ------------------------------------------------------------------------------------


def test_a_draft_is_a_lever() -> None:
    winner = BASELINE.replace(weight_format="q8_0", speculation="draft /a/small:q4_0")
    steps = path(Candidate(BASELINE), Candidate(winner))
    assert [(s.lever, s.choice) for s in steps[1:]] == [
        ("weights", "q8_0"), ("speculation", "draft small:q4_0")
    ]  # fmt: skip
    assert steps[-1].candidate.settings == winner


def test_an_engine_without_drafts_is_reached_without_one() -> None:
    before = BASELINE.replace(speculation="draft small")
    steps = path(Candidate(before), Candidate(Settings(engine="onnxruntime", threads=1, max_context=96)))
    assert [s.candidate.settings.draft for s in steps] == ["small", *[None] * (len(steps) - 1)]
    assert steps[1].candidate.settings.speculation == "none"
    ngram = Candidate(BASELINE.replace(speculation="ngram"))
    onward = path(ngram, Candidate(BASELINE.replace(engine="onnxruntime", weight_format="fp32")))
    assert onward[1].candidate.settings.speculation == "ngram"  # which it can


# -- a whole search -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(
    small: Artifact, draft: Artifact, lines: Workload, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Of a space in which every candidate but the baseline has a draft."""
    space = Space(
        ("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, kv_caches={"llamacpp": ("default",)},
        speculation=(), drafts=(f"{draft.path}:q8_0",),
    )  # fmt: skip
    brief = replace(lines, traffic=tuple(replace(item, max_new_tokens=12) for item in lines.traffic))
    return tune(
        small, brief, space=space, baseline=BASELINE, time_budget_s=120,
        path=tmp_path_factory.mktemp("tuned") / "run",
    )  # fmt: skip


def test_a_search_tries_the_draft(found: dict[str, Any], draft: Artifact) -> None:
    trials = [r for r in Run.open(found["run"]).records("trial") if r["stage"] == "search"]
    assert [r["settings"]["speculation"] for r in trials] == ["none", f"draft {draft.path}:q8_0"]
    assert all(r["state"] != "failed" for r in trials)
    assert all(r["cpu_s_spent"] > 0 for r in trials)


def test_the_report_names_the_draft(found: dict[str, Any]) -> None:
    for kind in report.FORMATS:
        assert "tiny:q8_0" in report.render(found["run"], kind).replace("\\", "").replace(
            "\N{NO-BREAK SPACE}", " "
        )


def test_what_is_kept_has_its_draft_and_runs_alone(small: Artifact, draft: Artifact, tmp_path: Path) -> None:
    chosen = BASELINE.replace(weight_format="q8_0", speculation=f"draft {draft.path}:q8_0")
    with Engine(small, chosen) as engine:
        pass
    place = keep(engine, tmp_path / "kept", "kept", "It pays.").rename(tmp_path / "moved")
    settings = Settings.from_json(json.loads((place / "settings.json").read_text("utf-8")))
    assert (settings.draft, settings.weight_format) == ("draft", "native")
    kept = Artifact.open(place)
    kept.verify()
    assert kept.sha256 == sha256_of(place / "q8_0.gguf")  # with or without a draft beside it
    own = Artifact.open(place / "draft")
    own.verify()
    assert (own.name, own.sha256 != kept.sha256) == (draft.name, True)
    assert kept.shape.n_layers == small.shape.n_layers
    plain = settings.without_speculation()
    answers = []
    for each in (plain, settings):
        with Engine(kept, each) as engine:
            assert (engine.draft is not None) == (each is settings)
            answers.append(engine.generate([Request([5, 6, 7], 30)]).completions[0].tokens)
    assert answers[0] == answers[1]
    model = served(ModelConfig(str(place)), lambda receipt: None, Footprint())
    assert model.options.settings == settings
