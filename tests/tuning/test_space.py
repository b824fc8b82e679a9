"""The space: every point once, each named by its choices, constraints and verdicts in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.engine import Settings
from negawatt.errors import UsageError
from negawatt.tuning import Constraints, Space, pareto
from negawatt.tuning.candidate import Candidate


@pytest.fixture
def space() -> Space:
    return Space(("llamacpp", "transformers"), (1, 8), (1, 2), 512, {"llamacpp": ("native", "q8_0")})


def test_the_grid_has_every_point_once(space: Space) -> None:
    points = list(space.grid())
    assert len(points) == len(set(points))
    llama = [p for p in points if p.settings.engine == "llamacpp"]
    # 2 formats × 2 threads × 2 KV precisions × (batch 1 with and without speculation, batch 8 without)
    assert len(llama) == 2 * 2 * 2 * 3
    assert {p.settings.engine for p in points} == {"llamacpp", "transformers"}


def test_parameters_lead_back_to_the_settings(space: Space) -> None:
    for candidate in space.grid():
        parameters = space.parameters(candidate)
        assert space.pick(lambda name, _, parameters=parameters: parameters[name]) == candidate


def test_what_lies_outside_is_refused(space: Space) -> None:
    with pytest.raises(UsageError, match="not in the space"):
        space.parameters(
            Candidate(Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=512))
        )


def test_the_search_starts_with_every_engine(space: Space) -> None:
    starts = space.starts()
    assert {s.settings.engine for s in starts[:2]} == set(space.engines)
    assert {s.settings.weight_format for s in starts if s.settings.engine == "llamacpp"} == {"native", "q8_0"}
    assert set(starts) <= set(space.grid())
    assert all(s.settings.engine == "llamacpp" for s in space.starts(without="transformers"))


def test_some_engines_are_searched_only_when_they_are_named() -> None:
    assert "onnxruntime" not in Space.default().engines
    assert "transformers" in Space.default().engines
    pytest.importorskip("onnxruntime")
    assert Space.default(only=["onnxruntime"]).engines == ("onnxruntime",)


def test_an_unknown_engine_is_a_wrong_call() -> None:
    with pytest.raises(UsageError, match="steam"):
        Space.default(only=["steam"])


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40)


@given(points)
def test_the_frontier_is_beaten_by_none_and_beats_all_others(costs: list[tuple[int, int]]) -> None:
    frontier = pareto(costs, lambda c: (float(c[0]), float(c[1])))

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    assert not any(beats(a, b) for a in costs for b in frontier)
    assert all(c in frontier or any(beats(f, c) for f in frontier) for c in costs)
    assert frontier == sorted(set(frontier))


@pytest.mark.parametrize("field", ["max_quality_drop", "p95_ttft_ms", "p95_tpot_ms", "max_memory_bytes"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_impossible_limits_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        Constraints(**{field: value})


def test_violations_are_named_with_what_was_found() -> None:
    limits = Constraints(p95_ttft_ms=100, max_memory_bytes=1000)
    figures = {"ttft_ms": {"p95": 250.0}, "tpot_ms": {"p95": 9.0}, "peak_rss_bytes": 900}
    assert limits.violations(figures) == {"p95 TTFT (ms)": (250.0, 100)}
    assert limits.violations({}) == {}


def test_classifiers_have_a_space_of_their_own() -> None:
    found = Space.default(batches=(1, 8), models=("", "small")).of_classifiers()
    assert "llamacpp" not in found.engines
    assert {"openvino", "transformers"} <= set(found.engines)
    assert [each.name for each in found.passes] == ["smoothquant"]
    points = list(found.grid())
    assert all(point.settings.kv_cache == "default" for point in points)
    assert all(point.settings.speculation == "none" for point in points)
    assert all(point.settings.weight_format != "native" for point in points if not point.passes)
    assert all(point.settings.weight_format == "native" for point in points if point.passes)
    named = Space.default(only=["transformers"], passes=[]).of_classifiers()
    assert named.engines == ("transformers",)
    assert not named.passes
    with pytest.raises(UsageError, match="llamacpp runs no classifiers"):
        Space.default(only=["llamacpp"]).of_classifiers()
