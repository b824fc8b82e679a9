"""A watch measures only what has drifted, searches only where it pays, and remembers both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.errors import UsageError
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.observed import Observed
from negawatt.tuning.trial import Trial
from negawatt.tuning.watch import Demand, Watch
from negawatt.workload import Workload
from negawatt.workload.writer import write_workload

DEAR = Candidate(Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96))
CHEAP = DEAR.run_as(weight_format="q8_0")
LONG = ((12, 60),) * 30
PER_DAY = 1e9

pytestmark = pytest.mark.usefixtures("in_home_with_engines")


@pytest.fixture(scope="module")
def chosen(small: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that chose the dearer of two ways, of which it also knew the cheaper."""
    path = tmp_path_factory.mktemp("chosen") / "run"
    with Run.create(
        "tune", path=path, baseline=DEAR.settings.to_json(), artifact={"sha256": small.sha256}
    ) as run:
        for number, candidate in enumerate((DEAR, CHEAP)):
            run.append("trial", Trial(number, candidate, "complete", 1.0).to_record("search"))
        run.finish({"best": DEAR.to_json(), "search": {"cpu_s": 40.0}})
    return path


def watching(path: Path, small: Artifact, lines: Workload, chosen: Path, **more: Any) -> Watch:
    run = Run.create("watch", path=path) if not path.exists() else Run.open(path)
    return Watch(run, small, lines, chosen, **more)


def test_drift_is_the_largest_factor() -> None:
    assert Demand(100, 50, 1).drift(Demand(100, 50, 1)) == 1
    assert Demand(100, 50, 1).drift(Demand(90, 25, 1.5)) == 2
    assert Demand(100, 50, 8).drift(Demand(100, 50, 2)) == 4


def test_what_is_as_before_and_what_is_too_little_is_not_measured(
    small: Artifact, lines: Workload, chosen: Path, tmp_path: Path
) -> None:
    watch = watching(tmp_path / "watch", small, lines, chosen)
    before = ((round(watch.demand.prompt), round(watch.demand.answer)),) * 30
    same = watch.check(Observed("here", lengths=before, in_flight=1.0, tokens_per_day=PER_DAY))
    assert not same.due
    assert same.ratio is None
    assert "not worth measuring" in same.text
    few = watch.check(Observed("here", lengths=LONG[:5], tokens_per_day=PER_DAY))
    assert (few.due, few.drift) == (False, None)
    assert len(list(watch.run.records("check"))) == 2


def test_a_drift_is_measured_and_weighed_against_a_search(
    small: Artifact, lines: Workload, chosen: Path, tmp_path: Path
) -> None:
    seen = Observed("here", lengths=LONG, in_flight=4.0, tokens_per_day=PER_DAY)
    watch = watching(tmp_path / "watch", small, lines, chosen)
    finding = watch.check(seen)
    assert finding.drift == pytest.approx(4.0, abs=2.0)
    assert finding.better is not None
    assert finding.better.settings.weight_format == "q8_0"
    assert finding.ratio is not None
    assert finding.ratio.low > 1
    assert finding.due
    assert finding.spent_cpu_s > 0
    watch.run.close()
    again = watching(tmp_path / "watch", small, lines, chosen)  # another sitting knows what was measured
    assert not again.check(seen).due
    rare = watching(tmp_path / "rare", small, lines, chosen, horizon_days=1e-9)
    finding = rare.check(seen)
    assert not finding.due
    assert finding.gain_cpu_s < 40
    assert "a search takes" in finding.text


def test_other_runs_and_models_are_refused(
    small: Artifact, lines: Workload, chosen: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="horizon"):
        watching(tmp_path / "a", small, lines, chosen, horizon_days=0)
    with Run.create("profile", path=tmp_path / "profile") as run:
        run.finish(DEAR.to_json())
    with pytest.raises(UsageError, match="is no search"):
        watching(tmp_path / "b", small, lines, tmp_path / "profile")


def negawatt(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from negawatt.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def receipts(path: Path) -> Path:
    """Of some five requests at a time: answered together they cost so much less that no noise hides it."""
    rows = [f"r{n},completed,{1000 + 300 * n},1800,12,60" for n in range(30)]
    path.write_text("\n".join(["id,outcome,created_s,duration_s,input_tokens,output_tokens", *rows]) + "\n")
    return path


def test_the_command_searches_when_it_pays_and_takes_the_new_choice(
    small: Artifact, lines: Workload, chosen: Path, tmp_path: Path
) -> None:
    write_workload(lines, tmp_path / "lines")
    command = [
        "tune", str(small.path), "--workload", str(tmp_path / "lines"), "--from", str(chosen),
        "--watch", str(receipts(tmp_path / "receipts.csv")), "--checks", "1", "--horizon", "1000000",
        "--engines", "llamacpp", "--pass", "none", "--max-context", "96", "--time-budget", "45s",
        "-o", str(tmp_path / "watch"), "--json",
    ]  # fmt: skip
    done = negawatt(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["due"]
    assert found["search"]["run"] == str(tmp_path / "watch" / "search-1")
    assert found["search"]["verdict"]["accepted"], found["search"]["verdict"]["text"]
    assert found["search"]["present"]["ratio"]["value"] > 1
    (adopted,) = Run.open(tmp_path / "watch").records("search")
    assert adopted["path"] == str(tmp_path / "watch" / "search-1")
    done = negawatt(*command)
    assert json.loads(done.stdout)["due"] is False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--watch", "r.csv"], "--watch needs --from"),
        (["--watch", "r.csv", "--from", "x", "--store", "runs.db"], "--store keeps one search"),
        (["--watch", "r.csv", "--from", "x", "--checks", "0"], "at least one of --checks"),
        (["--watch", "none.csv", "--from", "x", "--workload", "interactive-chat"], "cannot read none.csv"),
    ],
)
def test_wrong_calls_get_a_sentence(small: Artifact, options: list[str], says: str) -> None:
    done = negawatt("tune", str(small.path), *options)
    assert done.returncode in (1, 2)
    assert says in done.stderr
