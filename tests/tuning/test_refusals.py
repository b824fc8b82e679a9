"""What is wrong with a question is said before anything is measured, and leaves no folder behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from crashing import Crashing

from negawatt.artifact import Artifact
from negawatt.cli.settings import joules, parse_settings, seconds, size_bytes
from negawatt.cli.tune import asked_of
from negawatt.cli.tune import command as tune_command
from negawatt.engine import Settings
from negawatt.errors import EngineError, Infeasible, NegawattError, RunError, UnsupportedSetting, UsageError
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.drafts import with_drafts
from negawatt.tuning.material import Material
from negawatt.tuning.models import refuse_longer
from negawatt.tuning.prospect import prospects
from negawatt.tuning.study import Study
from negawatt.workload import Workload

SPACE = Space(("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, speculation=("none",))
BASELINE = Settings(engine="transformers", weight_format="fp32", max_context=96)


@pytest.mark.parametrize(
    ("limit", "fewest", "error", "says"),
    [
        (7.0, 0, UsageError, "accuracy cannot fall by 7"),
        (0.5, -1, UsageError, "cannot need -1 items"),
        (0.5, 10_000, Infeasible, "fewer than the 10,000"),
        (0.0001, 0, Infeasible, "cannot prove a drop"),
    ],
)
def test_a_limit_that_cannot_be_proved_leaves_no_run(
    small: Artifact, lines: Workload, tmp_path: Path,
    limit: float, fewest: int, error: type[NegawattError], says: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=says):
        tune(
            small, lines, constraints=Constraints(max_quality_drop=limit), space=SPACE, baseline=BASELINE,
            fewest_items=fewest, path=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_baseline_that_no_engine_has_leaves_no_run(
    small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    odd = Settings(engine="llamacpp", weight_format="q3_x")
    with pytest.raises(UnsupportedSetting, match="no weight format 'q3_x'"):
        tune(small, lines, space=SPACE, baseline=odd, path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(small: Artifact, lines: Workload, seed: int) -> None:
    with pytest.raises(UsageError, match="the seed must be"):
        tune(small, lines, space=SPACE, baseline=BASELINE, seed=seed)


def test_room_for_more_tokens_than_any_model_takes_is_refused(small: Artifact, lines: Workload) -> None:
    with pytest.raises(UsageError, match="was made for 128 tokens"):
        refuse_longer([small], lines, replace(SPACE, max_context=10**11))
    refuse_longer([small], lines, replace(SPACE, max_context=1024))


def test_a_draft_in_no_known_weights_is_named(small: Artifact, lines: Workload) -> None:
    with pytest.raises(UsageError, match=r"MODEL:WEIGHTS with weights of .*q8_0"):
        with_drafts(replace(SPACE, drafts=(f"{small.path}:q99",)), [small], lines)


def test_each_limit_has_its_sentence(lines: Workload) -> None:
    material = Material.of(lines, SPACE, 0)
    quality, latency = prospects(material, lines, Constraints(0.5, 10.0, 10.0), 0, 0.95)
    assert f"{len(material.held_items)} held-out items" in quality
    assert "12 requests" in latency
    assert prospects(material, lines, Constraints(), 0, 0.95) == []


def test_a_baseline_that_dies_ends_the_search_at_once_and_is_tried_again(tmp_path: Path) -> None:
    baseline = Candidate(BASELINE)
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        dying = Crashing(run, SPACE, baseline, lambda c: c == baseline, "died of SIGILL")
        with pytest.raises(EngineError, match="what you run today does not run here: died of SIGILL"):
            dying.search(lambda: 1.0, lambda text: None)
        assert len(dying.trials) == 1
        again = Crashing(run, SPACE, baseline, lambda c: False, "")
        again.begin(lambda: 1.0, lambda text: None)
        assert [t.state for t in again.trials] == ["complete"]


@pytest.mark.parametrize("record", [{"stage": "search"}, {"settings": {"steam": 1}}, {"settings": 3}])
def test_a_trial_that_cannot_be_read_is_named(tmp_path: Path, record: dict[str, object]) -> None:
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        whole = {"number": 0, "state": "complete", "cost": 1.0, "reason": None, "violations": []}
        run.append("trial", {**whole, "stage": "search", **record})
        study: Study = Crashing(run, SPACE, Candidate(BASELINE), lambda c: False, "")
        with pytest.raises(RunError, match=r"records.jsonl holds a trial that cannot be read"):
            study.begin(lambda: 1.0, lambda text: None)


# -- options ---------------------------------------------------------------------------------------


def test_what_is_said_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text("schema = 1\nbatches = [1]\nmax_context = 64\n")
    for extra, says in ((["--batch", "4"], "--batch"), (["--max-context", "96"], "--max-context")):
        with tune_command.make_context("tune", ["m", "--space", str(file), *extra]) as context:
            with pytest.raises(UsageError, match=says):
                asked_of(context.params)


@pytest.mark.parametrize("option", ["--energy-budget", "--max-memory", "--engines"])
def test_an_empty_value_is_not_no_value(option: str) -> None:
    with tune_command.make_context("tune", ["m", option, ""]) as context:
        with pytest.raises(UsageError):
            asked_of(context.params)


@pytest.mark.parametrize("arguments", [["--every", "5m"], ["--checks", "3"], ["--horizon", "9"]])
def test_options_of_a_watch_are_refused_without_one(arguments: list[str]) -> None:
    with tune_command.make_context("tune", ["m", *arguments]) as context:
        with pytest.raises(UsageError, match=f"{arguments[0]} is for --watch"):
            context.invoke(tune_command.callback, **context.params)  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [seconds, joules, size_bytes])
@pytest.mark.parametrize("text", ["", "-5", "nan", "9" * 400, "1e3", "5 apples"])
def test_absurd_quantities_are_refused(read: object, text: str) -> None:
    with pytest.raises(UsageError, match="expected a"):
        read(text)  # type: ignore[operator]


def test_a_baseline_is_spelled_in_digits() -> None:
    with pytest.raises(UsageError, match="expected ENGINE"):
        parse_settings("llamacpp:q8_0:²", 96)


# -- folders ---------------------------------------------------------------------------------------


def test_a_run_that_was_killed_while_it_was_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "run" / ".run.json.x1y2").mkdir(parents=True)
    Run.create("tune", path=tmp_path / "run").close()
    assert Run.open(tmp_path / "run").manifest["kind"] == "tune"


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="File name too long"):
        Run.create("tune", path=tmp_path / ("x" * 300))
    with pytest.raises(RunError, match="File name too long"):
        Run.open(tmp_path / ("x" * 300))
    Run.create("tune", path=tmp_path / "run").close()
    run = Run.open(tmp_path / "run")
    for name in ("lock", "records.jsonl", "result.json"):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).mkdir()
    with pytest.raises(RunError, match=r"cannot write to .*: Is a directory"):
        run.lock()
    with pytest.raises(RunError, match=r"cannot read the records of .*: Is a directory"):
        list(run.records())
    with pytest.raises(RunError, match=r"cannot read .*result.json: Is a directory"):
        _ = run.result
    (run.path / "result.json").rmdir()
    (run.path / "result.json").write_text(json.dumps([1]))
    with pytest.raises(RunError, match="no JSON object"):
        _ = run.result
