"""The way from baseline to winner: one lever a step, every step runs, and the shares add up to the whole."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from negawatt.engine import Settings
from negawatt.engine.backends import backend
from negawatt.tuning import Space
from negawatt.tuning.ablation import SAME, levers, path
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.pass_range import PassRange

SPACE = Space(
    ("llamacpp", "openvino", "transformers"), (1, 8), (1, 2), 512, {}, models=("", "other"),
    passes=(PassRange.of("vocabulary"), PassRange.of("rtn", {"bits": 4, "symmetric": True, "clip": True})),
    flash_attention=("default", "on", "off"),
)  # fmt: skip
POINTS = list(SPACE.grid())
points = st.sampled_from(POINTS)


@given(points, points)
def test_every_step_changes_something_and_can_be_run(baseline: Candidate, winner: Candidate) -> None:
    steps = path(baseline, winner)
    candidates = [step.candidate for step in steps]
    assert candidates[0] == baseline
    assert candidates[-1] == winner
    assert len(set(candidates)) == len(candidates)
    for candidate in candidates:
        backend(candidate.settings.engine).check(candidate.settings)


@given(points, points, st.data())
def test_shares_add_up_to_the_saving(baseline: Candidate, winner: Candidate, data: st.DataObject) -> None:
    steps = path(baseline, winner)
    cost = st.floats(1e-4, 1.0)
    costs = {step.candidate: data.draw(cost) for step in steps}
    dropped = data.draw(st.sets(st.sampled_from(steps[1:-1])) if len(steps) > 2 else st.just(set()))
    kept = {c: v for c, v in costs.items() if c not in {step.candidate for step in dropped}}
    rows = levers(steps, kept, "drawn")
    if baseline == winner or math.isclose(costs[baseline], costs[winner], rel_tol=SAME):
        assert rows is None
        return
    assert rows is not None
    assert math.isclose(sum(row["share"] for row in rows), 1.0, abs_tol=1e-6)
    assert rows[0]["cpu_s_per_token"] == costs[baseline]
    assert rows[-1]["cpu_s_per_token"] == costs[winner]
    named = " + ".join(row["lever"] for row in rows[1:])
    assert named == " + ".join(step.lever for step in steps[1:]), "no lever is lost with a missing step"


def test_an_engine_comes_before_what_only_it_has() -> None:
    before = Candidate(Settings(engine="transformers", weight_format="fp32", max_context=512))
    after = Candidate(
        Settings(engine="llamacpp", weight_format="q4_0", threads=1, speculation="ngram", max_context=512)
    )
    assert [step.lever for step in path(before, after)[1:]] == ["engine", "weights", "threads", "speculation"]


def test_what_cannot_be_measured_alone_is_told_with_what_follows() -> None:
    before = Candidate(Settings(engine="llamacpp", weight_format="f16"))
    steps = path(before, before.run_as(weight_format="q8_0", threads=1))
    rows = levers(steps, {steps[0].candidate: 4.0, steps[-1].candidate: 1.0}, "drawn")
    assert rows is not None
    assert [row["label"] for row in rows] == ["what you run today", "weights + threads: q8_0, 1"]
