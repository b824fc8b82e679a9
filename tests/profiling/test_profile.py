"""Profiling the real model: phases add up, pairs interleave, quality is judged, figures make sense."""

from __future__ import annotations

from dataclasses import replace

import pytest

from negawatt import catalog
from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Request, Settings
from negawatt.errors import UsageError, WorkloadError
from negawatt.profiling import Profile, profile, reference_load
from negawatt.profiling.summary import percentiles
from negawatt.profiling.window import QUESTIONS, groups_for, requests_of, spread
from negawatt.workload import GenerateItem, TrafficItem, Workload

SETTINGS = Settings(engine="llamacpp", weight_format="q4_0", threads=1, max_context=768)


@pytest.fixture(scope="module")
def found(model: Artifact) -> Profile:
    """Answers of 40 tokens are enough to tell 4 bits from 16, which cost two and a half times as much."""
    offline = Workload.open("offline")
    brief = replace(offline, traffic=tuple(replace(item, max_new_tokens=40) for item in offline.traffic))
    return profile(
        model, brief, SETTINGS, baseline=SETTINGS.replace(weight_format="f16"), rounds=2,
        requests_per_round=1, quality_items=12,
    )  # fmt: skip


def test_phases_add_up_to_the_whole(found: Profile) -> None:
    document = found.to_json()
    whole = found.summary.energy
    phases = [Energy.from_json(document["phases"][name]["energy"]) for name in ("prefill", "decode")]
    assert sum(e.value_j or 0 for e in phases) == pytest.approx(whole.value_j, rel=1e-9)
    per_token = Energy.from_json(document["energy_per_token"])
    assert per_token.value_j == pytest.approx((whole.value_j or 0) / document["tokens"]["generated"])


def test_the_document_has_what_other_programs_rely_on(found: Profile) -> None:
    document = found.to_json()
    promised = (
        "artifact", "settings", "energy_per_token", "cpu_s_per_token", "tokens_per_s", "ttft_ms",
        "tpot_ms", "peak_rss_bytes", "quality", "cost_model",
    )  # fmt: skip
    assert all(document[key] is not None for key in promised)
    low, high = document["cpu_s_per_token_spread"]
    assert 0 < low <= high
    assert document["ttft_ms"]["p50"] <= document["ttft_ms"]["p95"]
    assert 50e6 < document["peak_rss_bytes"] < 3e9
    assert 0 <= document["quality"]["low"] <= document["quality"]["value"] <= document["quality"]["high"] <= 1
    assert document["quality"]["n"] == 12
    assert document["cost_model"]["n_held_back"] > 0


def test_fewer_bytes_of_weights_cost_less(found: Profile) -> None:
    """4-bit weights against 16-bit ones, in turn: the ratio holds on a noisy machine too."""
    assert found.ratio is not None
    assert found.ratio.value > 1.05


def test_questions_without_traffic_are_what_joules_are_counted_on(model: Artifact) -> None:
    few = Workload.open("piqa").subset(40)
    found = profile(model, few, SETTINGS.replace(batch=4), rounds=2, requests_per_round=4, quality_items=0)
    document = found.to_json()
    assert document["unit"] == "answer"
    assert document["tokens"]["generated"] == document["requests"] == 2 * QUESTIONS
    joules = found.summary.energy.value_j or 0.0
    assert found.summary.energy_per_token.value_j == pytest.approx(joules / (2 * QUESTIONS))
    assert found.summary.prompted == sum(step.tokens for step in found.summary.steps)
    assert len(found.summary.ttft_ms) == 2 and found.summary.tpot_ms == {}
    assert found.cost_model is not None and found.cost_model.decode_call_s == 0.0


def test_a_workload_with_nothing_to_count_joules_on_is_refused(model: Artifact) -> None:
    questions = Workload.open("piqa")
    empty = Workload(**{**vars_of(questions), "quality": ()})
    with pytest.raises(WorkloadError, match="no traffic"):
        profile(model, empty, SETTINGS)
    mixed = (questions.quality[0], GenerateItem("write", "Write.", ("yes",), 4))
    metrics = {**questions.metrics, "generate": "exact_match"}
    several = Workload(**{**vars_of(questions), "quality": mixed, "metrics": metrics})
    with pytest.raises(WorkloadError, match="of several kinds"):
        profile(model, several, SETTINGS)
    with pytest.raises(UsageError, match="at least 2 rounds"):
        profile(model, questions, SETTINGS, rounds=1)


@pytest.fixture(scope="module", autouse=True)
def questions() -> None:
    catalog.pull("piqa")


def vars_of(workload: Workload) -> dict[str, object]:
    names = ("name", "description", "source", "licence", "traffic", "quality", "metrics", "provenance")
    return {name: getattr(workload, name) for name in names}


def test_a_request_that_does_not_fit_is_named(model: Artifact) -> None:
    item = TrafficItem("long-one", "word " * 100, 64)
    with pytest.raises(WorkloadError, match="long-one"):
        requests_of(model.tokenizer, [item], 80)


def test_the_reference_load_costs_a_little_and_repeats() -> None:
    costs = sorted(reference_load() for _ in range(9))
    assert 0.001 < costs[4] < 1.0
    assert costs[6] < 2.0 * costs[2]  # the middle of nine; even a busy host keeps these together


def test_groups_cover_the_lengths_and_fill_the_batch() -> None:
    requests = [Request([0] * n, n) for n in range(1, 41)]
    groups = groups_for(requests, 4, 3, 1)
    assert [len(g) for g in groups] == [8, 8, 8]
    lengths = sorted(len(r.tokens) for g in groups for r in g)
    assert lengths[0] <= 3
    assert lengths[-1] >= 38
    assert len(spread(requests[:3], 10)) == 10


def test_percentiles_interpolate() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": pytest.approx(2.9)}
    assert percentiles([]) == {}
