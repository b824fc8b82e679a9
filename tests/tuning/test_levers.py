"""A whole search over passes beside settings, on a small random model: what wins, what it costs and keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from negawatt import report
from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.run import Run
from negawatt.testing.small_models import TEXT, small_model
from negawatt.tuning import Space, tune
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.pass_range import PassRange
from negawatt.tuning.trial import Trial
from negawatt.workload import ChooseItem, TrafficItem, Workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)
SPACE = Space(
    ("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, kv_caches={"llamacpp": ("default",)},
    passes=(PassRange.of("depth", {"ratio": 0.5, "order": "contiguous"}),), speculation=("none",),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Six layers wide enough that half of them cost clearly less."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64}
    return Artifact.open(str(small_model(tmp_path_factory.mktemp("small") / "model", **wide)))


@pytest.fixture(scope="module")
def lines() -> Workload:
    said = (TEXT * 4).strip().splitlines()
    traffic = tuple(TrafficItem(f"t{n}", line, 40) for n, line in enumerate(said[:12]))
    quality = tuple(ChooseItem(f"q{n}", line, (" rain", " bread"), n % 2) for n, line in enumerate(said))
    return Workload("lines", "lines", "made", "Apache-2.0", traffic, quality, {"choose": "accuracy"})


@pytest.fixture(scope="module")
def found(small: Artifact, lines: Workload, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGAWATT_HOME", str(home_with_engines(tmp_path_factory.mktemp("home"))))
        return tune(
            small, lines, space=SPACE, baseline=BASELINE, time_budget_s=120, tokens_per_day=1e6,
            path=tmp_path_factory.mktemp("levers") / "run",
        )  # fmt: skip


def home_with_engines(place: Path) -> Path:
    """A home of its own that shares the runtimes pulled already."""
    from negawatt.home import home

    (place / "runtimes").symlink_to(home() / "runtimes")
    return place


def test_a_search_over_passes_tries_each_point_once_and_tells_what_wins(found: dict[str, Any]) -> None:
    trials = [Trial.from_record(r) for r in Run.open(found["run"]).records("trial") if r["stage"] == "search"]
    tried = [t.candidate for t in trials]
    assert tried[0] == Candidate(BASELINE)
    assert set(tried[1:]) == set(SPACE.grid())
    assert len(tried) == 3
    assert found["verdict"]["accepted"], found["verdict"]["text"]
    assert found["best"]["passes"] in ([], ["depth:ratio=0.5,order=contiguous"])


def test_what_was_made_is_charged_once(found: dict[str, Any]) -> None:
    search, run = found["search"], Run.open(found["run"])
    makings = list(run.records("making"))
    assert [m["passes"] for m in makings] == [["depth:ratio=0.5,order=contiguous"]]
    assert search["compression"]["passes"] == 1
    assert search["compression"]["cpu_s"] == pytest.approx(makings[0]["cpu_s_spent"])
    parts = sum(r["cpu_s_spent"] for r in run.records("trial") if r["stage"] == "search")
    assert parts + search["compression"]["cpu_s"] < search["cpu_s"]
    assert 0 < search["engine_share"] < 1
    assert search["payback_days"] == pytest.approx(search["payback_tokens"] / 1e6)
    assert all(r["energy_spent"]["value_j"] >= 0 for r in run.records("trial") if r["stage"] == "search")


def test_the_levers_share_the_saving_between_them(found: dict[str, Any]) -> None:
    rows = found["waterfall"]
    assert [row["lever"] for row in rows] in ([None, "passes", "weights"], [None, "weights"])
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert rows[0]["cpu_s_per_token"] == pytest.approx(found["baseline"]["cpu_s_per_token"], rel=0.5)
    assert "measured in turn" in rows[0]["how"]


def test_the_run_opens_in_every_report(found: dict[str, Any]) -> None:
    for kind in report.FORMATS:
        shown = report.render(found["run"], kind)
        assert "depth:ratio=0.5" in shown.replace("\\", "")
        assert "weights: q8_0" in shown.replace("\\", "")
    assert json.loads((Path(found["run"]) / "run.json").read_text())["question"]["space"]["passes"]
