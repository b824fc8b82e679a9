"""Several objectives: nothing is lost for its joules alone, and what is told is not beaten in all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.errors import UsageError
from negawatt.tuning import Space, tune
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.objectives import check_objectives, frontier, since_improvement, values
from negawatt.tuning.trial import Trial
from negawatt.workload import Workload

SPACE = Space(
    ("llamacpp",), (1, 4), (1,), 96, {"llamacpp": ("q4_0", "q8_0")}, kv_caches={"llamacpp": ("default",)},
    speculation=("none",),
)  # fmt: skip
BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)

pytestmark = pytest.mark.usefixtures("in_home_with_engines")


def trial(number: int, cost: float, memory: int, drop: float | None = None) -> Trial:
    figures: dict[str, object] = {"peak_rss_bytes": memory}
    if drop is not None:
        figures["quality_drop"] = {"drop": drop}
    return Trial(number, Candidate(Settings(threads=number + 1)), "complete", cost, figures=figures)


def test_names_are_checked_and_joules_come_first() -> None:
    assert check_objectives(["memory", "quality", "memory"]) == ("energy", "memory", "quality")
    with pytest.raises(UsageError, match="joules times a rate"):
        check_objectives(["carbon"])
    with pytest.raises(UsageError, match="no objective 'speed'"):
        check_objectives(["speed"])


def test_what_is_unknown_is_not_taken_for_nothing() -> None:
    assert values(trial(1, 2.0, 100), ("energy", "quality")) is None
    assert values(trial(0, 2.0, 100), ("energy", "quality")) == pytest.approx((0.6931, 0.0), abs=1e-3)
    assert values(trial(1, 2.0, 100, 0.05), ("energy", "quality")) == pytest.approx((0.6931, 1.0), abs=1e-3)


def test_the_frontier_keeps_what_is_best_in_either() -> None:
    trials = [trial(0, 9.0, 900), trial(1, 3.0, 500), trial(2, 5.0, 100), trial(3, 6.0, 200)]
    assert [t.number for t in frontier(trials, ("energy", "memory"))] == [1, 2]
    assert since_improvement(trials, ("energy", "memory")) == 1
    assert since_improvement(trials, ("energy",)) == 2


def test_a_search_over_joules_and_memory(small: Artifact, lines: Workload, tmp_path: Path) -> None:
    """A batch of four costs fewer joules a token; alone it holds less in memory: both are told."""
    brief = replace(lines, traffic=tuple(replace(item, max_new_tokens=12) for item in lines.traffic))
    found = tune(
        small, brief, space=SPACE, baseline=BASELINE, time_budget_s=25, objectives=["memory"],
        strategy="nsga2", path=tmp_path / "run",
    )  # fmt: skip
    assert found["search"]["objectives"] == ["energy", "memory"]
    told = [(each["cost"], each["peak_rss_bytes"]) for each in found["frontier"]]
    for cost, memory in told:
        assert not any(c <= cost and m < memory for c, m in told)
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    trials = [r for r in records if r["record"] == "trial" and r["stage"] == "search"]
    assert all(r["state"] == "complete" for r in trials), "none is dropped early for its joules"
    least = min(r["peak_rss_bytes"] for r in trials)
    assert any(memory == least for _, memory in told)
