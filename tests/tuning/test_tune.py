"""A whole search on the real model, small: verdict, artifact, interruption, limits nothing can keep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from negawatt import report
from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import RunError, UsageError
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, tune
from negawatt.workload import Workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=768)
SPACE = Space(("llamacpp",), (1,), (1,), 768, {"llamacpp": ("f16", "q8_0")})


@pytest.fixture(scope="module")
def workload() -> Workload:
    """Few and short requests and questions of the bundled workload: minutes become seconds."""
    offline = Workload.open("offline")
    short = tuple(sorted(offline.traffic, key=lambda t: len(str(t.prompt)))[:6])
    questions = tuple(q for q in offline.quality if q.kind in ("choose", "classify"))[:45]
    values = {name: getattr(offline, name) for name in ("name", "description", "source", "licence")}
    return Workload(**values, traffic=short, quality=questions, metrics=offline.metrics)


@pytest.fixture(scope="module")
def found(model: Artifact, workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tune(
        model, workload, constraints=Constraints(max_quality_drop=0.5), space=SPACE, baseline=BASELINE,
        time_budget_s=90, path=tmp_path_factory.mktemp("tuned") / "run",
    )  # fmt: skip


def test_finds_what_costs_less_and_says_how_sure_it_is(found: dict[str, Any]) -> None:
    verdict = found["verdict"]
    assert verdict["accepted"], verdict
    assert found["best"]["settings"]["weight_format"] == "q8_0"
    assert verdict["ratio"]["low"] > 1.0
    assert verdict["saving_low"] <= verdict["saving"] <= verdict["saving_high"]
    assert verdict["quality_drop_high"] <= 0.5
    assert "items that the search never saw" in verdict["text"]


def test_accounts_for_itself(found: dict[str, Any]) -> None:
    search = found["search"]
    assert search["trials"] >= 2
    assert search["cpu_s"] > 0
    saved = found["baseline"]["cpu_s_per_token"] - found["best"]["cpu_s_per_token"]
    assert search["payback_tokens"] == pytest.approx(search["cpu_s"] / saved, rel=0.01)


def test_leaves_an_artifact_that_runs_and_a_run_that_reports(found: dict[str, Any]) -> None:
    kept = Artifact.open(found["artifact"])
    settings = Settings.from_json(json.loads((Path(found["artifact"]) / "settings.json").read_text()))
    assert settings.weight_format == "native"
    assert kept.lineage[-1]["pass"] == "tune"
    with Engine(kept, settings) as engine:
        assert len(engine.generate([Request([1, 2, 3], 4)]).completions[0].tokens) == 4
    run = Run.open(found["run"], kind="tune")
    assert run.result == json.loads(json.dumps(found))
    for kind in report.FORMATS:
        assert "q8_0" in report.render(found["run"], kind).replace("\\", "")  # Markdown escapes it


def test_a_finished_run_is_not_begun_again(
    model: Artifact, workload: Workload, found: dict[str, Any]
) -> None:
    with pytest.raises(RunError, match="is finished"):
        tune(model, workload, space=SPACE, baseline=BASELINE, path=Path(found["run"]))


def test_a_limit_nothing_can_keep_is_named_with_how_close_anything_came(
    model: Artifact, workload: Workload, tmp_path: Path
) -> None:
    result = tune(
        model, workload, constraints=Constraints(p95_tpot_ms=0.001), space=SPACE, baseline=BASELINE,
        time_budget_s=30, path=tmp_path / "run",
    )  # fmt: skip
    assert not result["verdict"]["accepted"]
    assert "p95 TPOT (ms): the closest of" in result["verdict"]["text"]
    assert "Keep what you have" in result["verdict"]["text"]
    assert "artifact" not in result


def test_killed_at_once_and_begun_again_it_keeps_its_trials(model: Artifact, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-c", "from negawatt.cli import main; main()", "tune", model.name, "--workload",
        "offline", "--engines", "llamacpp", "--baseline", "llamacpp:q8_0:1", "--time-budget", "25s",
        "-o", str(run), "--json",
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_trials(run, 1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = list(Run.open(run).records("trial"))
    refused = subprocess.run([*command, "--seed", "5"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "unfinished search for something else" in refused.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = list(Run.open(run).records("trial"))
    assert after[: len(before)] == before
    assert json.loads(done.stdout)["run"] == str(run)


def wait_for_trials(run: Path, count: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if (run / "run.json").exists() and sum(1 for _ in Run.open(run).records("trial")) >= count:
            return
        time.sleep(0.2)
    pytest.fail("no trial was finished within two minutes")


def test_too_little_to_search_with_is_refused(model: Artifact, workload: Workload) -> None:
    tiny = Workload("tiny", "", "", "", workload.traffic[:2], (), {}, {})
    with pytest.raises(UsageError, match="a search needs 4"):
        tune(model, tiny, space=SPACE, baseline=BASELINE)
