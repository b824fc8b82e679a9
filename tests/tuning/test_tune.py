"""A whole search on a small model: verdict, accounts, artifact, where it starts, and how it ends early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negawatt import report
from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import RunError, UsageError, WorkloadError
from negawatt.run import Run
from negawatt.testing.small_models import TEXT
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.observed import Observed
from negawatt.tuning.pass_range import PassRange
from negawatt.tuning.trial import Trial
from negawatt.workload import ChooseItem, Workload
from negawatt.workload.writer import write_workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)
DEPTH = "depth:ratio=0.5,order=contiguous"
PLAIN = Space(
    ("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, kv_caches={"llamacpp": ("default",)},
    speculation=("none",),
)  # fmt: skip
SPACE = Space(
    ("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, kv_caches={"llamacpp": ("default",)},
    passes=(PassRange.of("depth", {"ratio": 0.5, "order": "contiguous"}),), speculation=("none",),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("in_home_with_engines")


@pytest.fixture(scope="module")
def found(small: Artifact, lines: Workload, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tune(
        small, lines, space=SPACE, baseline=BASELINE, time_budget_s=240, tokens_per_day=1e6,
        path=tmp_path_factory.mktemp("tuned") / "run",
    )  # fmt: skip


def test_finds_what_costs_less_and_says_how_sure_it_is(found: dict[str, Any]) -> None:
    verdict = found["verdict"]
    assert verdict["accepted"], verdict
    assert found["best"]["settings"]["weight_format"] == "q8_0"
    assert found["best"]["passes"] == [DEPTH]
    assert verdict["ratio"]["low"] > 1.0
    assert verdict["saving_low"] <= verdict["saving"] <= verdict["saving_high"]
    assert "items that the search never saw" in verdict["text"]


def test_every_point_is_tried_once(found: dict[str, Any]) -> None:
    records = Run.open(found["run"]).records("trial")
    tried = [Trial.from_record(r).candidate for r in records if r["stage"] == "search"]
    assert tried[0] == Candidate(BASELINE)
    assert set(tried[1:]) == set(SPACE.grid())
    assert len(tried) == 3


def test_accounts_for_itself_and_charges_what_was_made_once(found: dict[str, Any]) -> None:
    search, run = found["search"], Run.open(found["run"])
    makings = list(run.records("making"))
    assert [m["passes"] for m in makings] == [[DEPTH]]
    assert search["compression"]["passes"] == 1
    assert search["compression"]["cpu_s"] == pytest.approx(makings[0]["cpu_s_spent"])
    trials = [r for r in run.records("trial") if r["stage"] == "search"]
    assert sum(r["cpu_s_spent"] for r in trials) + search["compression"]["cpu_s"] < search["cpu_s"]
    assert all(r["energy_spent"]["value_j"] > 0 for r in trials)
    assert 0 < search["engine_share"] < 1
    saved = found["baseline"]["cpu_s_per_token"] - found["best"]["cpu_s_per_token"]
    assert search["payback_tokens"] == pytest.approx(search["cpu_s"] / saved, rel=0.01)
    assert search["payback_days"] == pytest.approx(search["payback_tokens"] / 1e6)


def test_the_levers_share_the_saving_between_them(found: dict[str, Any]) -> None:
    rows = found["waterfall"]
    assert [row["lever"] for row in rows] == [None, "passes", "weights"]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert all(row["share"] > 0 for row in rows[1:])
    assert "measured in turn" in rows[0]["how"]


def test_leaves_an_artifact_that_runs_and_a_run_that_reports(found: dict[str, Any]) -> None:
    kept = Artifact.open(found["artifact"])
    settings = Settings.from_json(json.loads((Path(found["artifact"]) / "settings.json").read_text()))
    assert settings.weight_format == "native"
    assert [step["pass"] for step in kept.lineage] == ["depth", "tune"]
    assert kept.shape.n_layers == 3
    with Engine(kept, settings) as engine:
        assert len(engine.generate([Request([1, 2, 3], 4)]).completions[0].tokens) == 4
    run = Run.open(found["run"], kind="tune")
    assert run.result == json.loads(json.dumps(found))
    for kind in report.FORMATS:
        shown = report.render(found["run"], kind).replace("\\", "")  # Markdown escapes
        assert "depth:ratio=0.5" in shown
        assert "weights: q8_0" in shown


def test_a_finished_run_is_not_begun_again(small: Artifact, lines: Workload, found: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="is finished"):
        tune(small, lines, space=SPACE, baseline=BASELINE, path=Path(found["run"]))


def test_from_a_run_it_says_whether_the_present_choice_is_still_the_best(
    small: Artifact, lines: Workload, found: dict[str, Any], tmp_path: Path
) -> None:
    seen = Observed.read(Path(found["run"]))
    again = tune(
        small, lines, space=PLAIN, baseline=BASELINE, observed=seen, time_budget_s=240, path=tmp_path / "run"
    )
    assert "still the best" in again["present"]["text"]
    tried = [Trial.from_record(r).candidate for r in Run.open(tmp_path / "run").records("trial")]
    assert tried[1] == seen.present, "what is known to be good is tried first"
    assert not list(Run.open(tmp_path / "run").records("making")), "what was made before is found again"
    assert again["search"]["compression"]["cpu_s"] == 0


def test_a_limit_nothing_can_keep_is_named_with_how_close_anything_came(
    small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    result = tune(
        small, lines, constraints=Constraints(p95_tpot_ms=0.0001), space=PLAIN, baseline=BASELINE,
        time_budget_s=240, path=tmp_path / "run",
    )  # fmt: skip
    assert not result["verdict"]["accepted"]
    assert "p95 TPOT (ms): the closest of" in result["verdict"]["text"]
    assert "Keep what you have" in result["verdict"]["text"]
    assert "artifact" not in result


def test_joules_are_kept_like_seconds(small: Artifact, lines: Workload, tmp_path: Path) -> None:
    """The first measurement uses up all of them; one candidate is tried yet, and the finals are short."""
    result = tune(
        small, lines, space=PLAIN, baseline=BASELINE, time_budget_s=3600, energy_budget_j=0.01,
        path=tmp_path / "run",
    )  # fmt: skip
    assert result["search"]["trials"] == 2
    assert result["verdict"]["ratio"]["n"] <= 3


def test_interrupted_killed_and_begun_again_it_keeps_its_trials(
    small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    run, asked = tmp_path / "run", write_workload(lines, tmp_path / "lines")
    command = [
        sys.executable, "-c", "from negawatt.cli import main; main()", "tune", str(small.path), "--workload",
        str(asked), "--engines", "llamacpp", "--baseline", "llamacpp:f16:1", "--max-context", "96", "--pass",
        "none", "--strategy", "random", "--time-budget", "12s", "-o", str(run), "--json",
    ]  # fmt: skip
    for number, ending in enumerate((signal.SIGINT, signal.SIGKILL), 1):
        begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_trials(run, number)
        os.kill(begun.pid, ending)
        _, said = begun.communicate(timeout=60)
        assert begun.returncode != 0
        assert "Traceback" not in said
        assert not workers_of(begun.pid)
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
        time.sleep(0.05)
    pytest.fail("no trial was finished within two minutes")


def workers_of(pid: int) -> list[str]:
    """Command lines of processes whose parent is still `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
        if parent == pid:
            found.append(stat.parent.name)
    return found


def test_too_little_to_search_with_is_refused(small: Artifact, lines: Workload) -> None:
    tiny = Workload("tiny", "", "", "", lines.traffic[:2], (), {}, {})
    with pytest.raises(UsageError, match="a search needs 4"):
        tune(small, tiny, space=SPACE, baseline=BASELINE)


def test_a_question_that_does_not_fit_is_named_before_anything_is_spent(
    small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    long = ChooseItem("long", " ".join(TEXT.split()), (" rain", " bread"), 0)
    asked = replace(lines, quality=(*lines.quality, long))
    with pytest.raises(WorkloadError, match=r"item 'long' of lines takes .* a sequence may hold 96"):
        tune(small, asked, space=SPACE, baseline=BASELINE, path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_labels_models_and_passes_with_other_tokens_are_refused(
    small: Artifact, model: Artifact, lines: Workload
) -> None:
    unlabelled = Workload("asked", "", "", "", lines.traffic, (), {}, {})
    with pytest.raises(UsageError, match="cuts text into other tokens"):
        tune(small, unlabelled, space=PLAIN, baseline=BASELINE, models=[model])
    cut = Space(("llamacpp",), (1,), (1,), 96, {}, passes=(PassRange.of("vocabulary"),))
    with pytest.raises(UsageError, match="vocabulary changes the tokens"):
        tune(small, unlabelled, space=cut, baseline=BASELINE)
    with pytest.raises(UsageError, match="given twice"):
        tune(small, lines, space=PLAIN, baseline=BASELINE, models=[small])
