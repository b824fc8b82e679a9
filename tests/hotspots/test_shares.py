"""Sharing a window's joules: whatever the parts are, they add up to the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Energy, Measurement
from negawatt.hotspots import Hotspots, by_role
from negawatt.hotspots.roles import folded
from negawatt.hotspots.tally import DEEPEST, Key, Tally

KEYS = st.builds(
    Key,
    st.sampled_from(["a", "b", "c", "layers.0", "layers.1", "lm_head"]),
    st.sampled_from(["function", "module", "operator", "stage", "rest"]),
    st.sampled_from(["", "Linear", "LlamaAttention", "MLP"]),
)
STACKS = st.lists(
    st.tuples(st.lists(KEYS, max_size=6), st.floats(0, 1e3), st.integers(0, 9), st.floats(0, 1e12)),
    max_size=30,
)
ENERGIES = st.floats(1e-6, 1e9)


def measured(components: dict[str, Energy], cpu_s: float = 1.0) -> Measurement:
    nothing = Energy.zero()
    total = Energy.total(components.values())
    return Measurement(0.0, 2.0, total, components, {}, nothing, total, cpu_s, 0.0, 0.0)


def sum_of(part: dict[str, Any]) -> float:
    """Joules of a part of the document, itself and inside."""
    return math.fsum([part["self_energy"]["value_j"], *map(sum_of, part["inside"])])


def tally_of(stacks: list[tuple[list[Key], float, int, float]]) -> Tally:
    tally = Tally(Key("all", "whole"))
    for path, cpu_s, count, flops in stacks:
        tally.add(path, cpu_s, count, flops, flops / 2)
    return tally


@given(STACKS, ENERGIES, ENERGIES, ENERGIES, st.sampled_from([None, 1, 50, 10_000]))
def test_all_parts_make_the_whole(
    stacks: list[tuple[list[Key], float, int, float]],
    cpu_j: float,
    dram_j: float,
    gpu_j: float,
    samples: int | None,
) -> None:
    components = {
        "cpu/0": Energy.measured(cpu_j, 0.1 * cpu_j),
        "dram/0": Energy.estimated(dram_j, 0.5 * dram_j, 2 * dram_j),
        "gpu/0": Energy.measured(gpu_j),
    }
    tally = tally_of([*stacks, ([Key("sure", "function")], 1.0, 1, 0.0)])
    found = Hotspots.share("title", tally, measured(components), samples=samples)
    whole_j = found.measurement.energy.value_j
    near = {"rel": 1e-9}
    assert math.fsum(s.self_energy.value_j for s in found.whole.walk()) == pytest.approx(whole_j, **near)
    assert math.fsum(s.self_energy.value_j for s in found.flat()) == pytest.approx(whole_j, **near)
    assert found.whole.energy.value_j == whole_j
    assert math.fsum(s.self_cpu_s for s in found.whole.walk()) == pytest.approx(found.whole.cpu_s, **near)
    for spot in found.whole.walk():
        inner_j = math.fsum([spot.self_energy.value_j, *(p.energy.value_j for p in spot.inside)])
        assert inner_j == pytest.approx(spot.energy.value_j, rel=1e-9, abs=1e-9 * whole_j)
        assert spot.energy.low_j <= spot.energy.value_j <= spot.energy.high_j
    together = folded(found.whole)
    assert math.fsum(s.self_energy.value_j for s in together.walk()) == pytest.approx(whole_j, **near)
    if roles := by_role(found.whole):
        assert math.fsum(r.energy.value_j for r in roles) == pytest.approx(whole_j, **near)
    document = found.to_json()["whole"]
    assert document["energy"]["value_j"] == whole_j
    assert sum_of(document) == pytest.approx(whole_j, **near)


def test_missing_joules_stay_missing_and_cpu_time_is_shared_all_the_same() -> None:
    tally = tally_of([([Key("a", "function")], 3.0, 1, 0.0), ([Key("b", "function")], 1.0, 1, 0.0)])
    found = Hotspots.share("t", tally, measured({"cpu": Energy.missing("no counter")}))
    assert [s.self_cpu_s for s in found.flat()[:2]] == [3.0, 1.0]
    assert all(spot.self_energy.is_missing for spot in found.flat() if spot.kind == "function")
    assert found.whole.energy.is_missing
    assert found.to_json()["energy"]["value_j"] is None


def test_a_device_keeps_its_joules_as_a_part_of_its_own() -> None:
    tally = tally_of([([Key("a", "function")], 3.0, 1, 0.0)])
    found = Hotspots.share(
        "t", tally, measured({"cpu/0": Energy.measured(5.0), "gpu/0": Energy.measured(70.0)})
    )
    by_name = {s.name: s.self_energy.value_j for s in found.flat()}
    assert by_name == {"a": 5.0, "gpu/0": 70.0, "all": 0.0}


def test_few_samples_leave_more_open_than_many() -> None:
    stacks = [([Key("a", "function")], 1.0, 1, 0.0), ([Key("b", "function")], 1.0, 1, 0.0)]
    exact = measured({"cpu/0": Energy.measured(100.0)})
    few, many = (Hotspots.share("t", tally_of(stacks), exact, samples=n).flat()[0] for n in (10, 10_000))
    timed = Hotspots.share("t", tally_of(stacks), exact).flat()[0]
    assert few.self_energy.low_j == pytest.approx(23.7, abs=0.2)  # Wilson: 5 of 10
    assert few.self_energy.high_j == pytest.approx(76.3, abs=0.2)
    assert 48 < many.self_energy.low_j < 50 < many.self_energy.high_j < 52
    assert timed.self_energy.low_j == timed.self_energy.high_j == 50


def test_recursion_is_one_part_and_counts_once() -> None:
    a, b = Key("a", "function"), Key("b", "function")
    tally = tally_of(
        [([a, a, a, b, a], 1.0, 1, 0.0), ([a] * 5000, 1.0, 1, 0.0), ([a, b] * 5000, 2.0, 1, 0.0)]
    )
    found = Hotspots.share("t", tally, measured({"cpu/0": Energy.measured(4.0)}))
    spots = {s.name: s for s in found.flat()}
    assert spots["a"].cpu_s == 4.0, "a call inside a call of the same counts once"
    assert spots["a"].self_cpu_s + spots["b"].self_cpu_s == 4.0

    def depth(spot: object) -> int:
        return 1 + max((depth(part) for part in spot.inside), default=0)  # type: ignore[attr-defined]

    assert depth(found.whole) <= DEEPEST + 1


def test_roles_are_known_by_class_and_stage() -> None:
    layer = Key("layers.0", "module", "LlamaDecoderLayer")
    attention = [layer, Key("self_attn", "module", "LlamaAttention")]
    paths = [
        [*attention, Key("q_norm", "module", "Qwen3RMSNorm"), Key("aten.mul", "operator")],
        [*attention, Key("aten.mm", "operator")],
        [layer, Key("mlp", "module", "LlamaMLP"), Key("aten.mm", "operator")],
        [layer, Key("aten.add", "operator")],
        [Key("embed_tokens", "module", "Embedding"), Key("aten.embedding", "operator")],
        [Key("rotary_emb", "module", "LlamaRotaryEmbedding"), Key("aten.cos", "operator")],
        [Key("norm", "module", "LlamaRMSNorm"), Key("aten.mul", "operator")],
        [Key("lm_head", "module", "Linear"), Key("aten.mm", "operator")],
    ]
    tally = tally_of([([Key("prefill", "stage"), *path], 1.0, 1, 8.0) for path in paths])
    found = Hotspots.share("t", tally, measured({"cpu/0": Energy.measured(8.0)}))
    shares = {(r.stage, r.name): r.energy.value_j for r in by_role(found.whole)}
    parts = {"attention": 3, "MLP": 1, "other": 1, "embedding": 1, "norm": 1, "head": 1}
    assert shares == {("prefill", name): n for name, n in parts.items()} | {("", "other"): 0.0}
    assert next(r.flops for r in by_role(found.whole) if r.name == "attention") == 24.0
