"""The predictor on tables whose effects are known: it learns them, and its intervals hold what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from landscape import Landscape
from negawatt.engine import Settings
from negawatt.tuning import Space
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.memory import Memory
from negawatt.tuning.predicted import bits_of, promising, traits
from negawatt.tuning.predictor import WHOLE_NOISE, Observation, Predictor, chances, deciding
from negawatt.tuning.proposals import Proposals
from negawatt.tuning.sampler import Outcome, Sampler
from negawatt.tuning.strategy import strategy
from negawatt.tuning.tree import Exhausted, points
from negawatt.tuning.trial import Trial

SPACE = Space(("llamacpp", "openvino", "transformers"), (1, 8), (1, 2), 512, {})
CANDIDATES = list(SPACE.grid())
POINTS = [{**SPACE.parameters(c), **traits(c)} for c in CANDIDATES]


def table(seed: int) -> np.ndarray:
    """Logarithms of true costs: effects of every choice, small ones of pairs, as real engines show them."""
    rng = np.random.default_rng(seed)
    effects: dict[tuple[str, object], float] = {}
    spreads = {"engine": 0.5, "batch": 0.6, "bits": 0.4, "weight_format": 0.1, "threads": 0.1}
    logs = []
    for point in POINTS:
        total = -4.0
        for name, value in point.items():
            spread = spreads.get(name.strip("\0").rsplit(".", 1)[-1], 0.04)
            total += effects.setdefault((name, value), float(rng.normal(0, spread)))
        pair = ("pair", (point["engine"], point["batch"]))
        logs.append(total + effects.setdefault(pair, float(rng.normal(0, 0.08))))
    return np.asarray(logs)


@pytest.mark.parametrize("n", [10, 25, 60])
def test_intervals_hold_what_is_measured_as_often_as_they_say(n: int) -> None:
    inside, total = 0, 0
    for seed in range(6):
        rng, true = np.random.default_rng([seed, n]), table(seed)
        order = rng.permutation(len(POINTS))
        predictor = Predictor()
        for i in order[:n]:
            predictor.observe(Observation(POINTS[i], float(true[i] + WHOLE_NOISE * rng.normal())))
        rest = order[n:]
        low, high = predictor.costs([POINTS[i] for i in rest]).interval(0.9)
        seen = true[rest] + WHOLE_NOISE * rng.normal(size=len(rest))
        inside += int(((low <= seen) & (seen <= high)).sum())
        total += len(rest)
    assert inside / total >= 0.8


def test_more_trials_make_it_surer_and_nearer() -> None:
    true, errors, widths = table(1), [], []
    for n in (8, 80):
        order = np.random.default_rng(0).permutation(len(POINTS))
        predictor = Predictor([Observation(POINTS[i], float(true[i])) for i in order[:n]])
        found = predictor.costs([POINTS[i] for i in order[n:]])
        errors.append(float(np.abs(found.mean - true[order[n:]]).mean()))
        widths.append(float(found.sd.mean()))
    assert errors[1] < 0.5 * errors[0]
    assert widths[1] < 0.7 * widths[0]


def test_what_another_run_saw_helps_though_all_of_it_was_dearer() -> None:
    true = table(2)
    seen = np.random.default_rng(0).permutation(len(POINTS))[::3]
    earlier = [Observation(POINTS[i], float(true[i]) + 0.3, run="before") for i in seen]
    own = [Observation(p, float(v)) for p, v in list(zip(POINTS, true, strict=True))[:2]]
    foretold = Predictor([*earlier, *own]).costs(POINTS)
    assert float(np.abs(foretold.mean - true).mean()) < 0.1


def seen_of(engine: str, weight_format: str) -> tuple[int, dict[str, object]]:
    """A point of an engine and a weight format at batch 1 with one thread, and its place."""
    wanted = Settings(engine=engine, weight_format=weight_format, threads=1, max_context=512)
    place = CANDIDATES.index(Candidate(wanted))
    return place, POINTS[place]


def test_what_formats_of_one_engine_cost_is_foretold_in_order_from_its_first() -> None:
    starts = [
        Observation(seen_of(*each)[1], -4.0) for each in (("llamacpp", "q4_0-head8"), ("openvino", "int8"))
    ]
    asked = [seen_of("llamacpp", name)[1] for name in ("q4_0", "q8_0", "f16")]
    asked += [seen_of("llamacpp", "q4_1-head8")[1], seen_of("transformers", "fp32")[1]]
    four, eight, whole, plain, reference = Predictor(starts).costs(asked).mean
    assert four < eight < whole < reference
    assert four < plain < whole, "as few bits, and a kernel that cannot be fed as well"


def test_answers_spoilt_by_coarse_weights_do_not_speak_against_fine_ones() -> None:
    identities = [c.arithmetic for c in CANDIDATES]
    dimensions = {"engine", "\0bits", "\0stem", "llamacpp.weight_format", "openvino.weight_format"}
    predictor = Predictor()
    for engine, name in (("llamacpp", "q4_0-head8"), ("openvino", "int4-g64-sym")):
        place, point = seen_of(engine, name)
        predictor.observe(Observation(point, -4.0, drop=0.4, identity=identities[place], kept=False))
    places = [seen_of("llamacpp", name)[0] for name in ("iq4_nl", "q8_0", "native")]
    chance = predictor.keeps([POINTS[i] for i in places], [identities[i] for i in places], dimensions, 0.1)
    assert chance[0] < 0.5, "another four bits"
    assert chance[0] < chance[1] < chance[2]
    assert chance[2] > 0.8, "weights as they were"


def test_an_arithmetic_has_one_quality_whatever_runs_it() -> None:
    made = [(p, c.arithmetic) for p, c in zip(POINTS, CANDIDATES, strict=True)]
    dimensions = deciding(made)
    assert {"llamacpp.weight_format", "llamacpp.kv_cache"} <= dimensions
    assert not {"threads", "batch", "llamacpp.speculation"} & dimensions
    identities = [c.arithmetic for c in CANDIDATES]
    predictor = Predictor()
    for place in (0, 40, 100):
        predictor.observe(
            Observation(
                POINTS[place], -4.0, drop=0.2 if place else 0.0, identity=identities[place], kept=not place
            )
        )
    chance = predictor.keeps(POINTS, identities, dimensions, 0.01)
    assert all(chance[i] == 1.0 for i, same in enumerate(identities) if same == identities[0])
    assert all(chance[i] == 0.0 for i, same in enumerate(identities) if same == identities[40])
    unknown = [c for c, same in zip(chance, identities, strict=True) if same not in predictor.verdicts()]
    assert 0 < min(unknown) <= max(unknown) < 1


def test_what_always_fails_on_one_engine_is_expected_to_fail_there() -> None:
    known = [p for p in POINTS if p["engine"] != "transformers"]
    known = [known[i] for i in np.random.default_rng(0).permutation(len(known))[::15]]
    failed = [p["engine"] == "openvino" for p in known]
    chance = chances(known, failed, POINTS)
    bad = [c for c, p in zip(chance, POINTS, strict=True) if p["engine"] == "openvino"]
    good = [c for c, p in zip(chance, POINTS, strict=True) if p["engine"] == "llamacpp"]
    assert min(bad) > 0.8
    assert max(good) < 0.2
    assert not chances(known, [False] * len(known), POINTS).any()


def test_the_default_prunes_before_it_measures_and_says_how_far_to_trust_it() -> None:
    true = {c: float(np.exp(v)) for c, v in zip(CANDIDATES, table(3), strict=True)}
    proposals = Proposals(SPACE, "default", 0, starts=SPACE.starts())
    tried: list[Candidate] = []
    while (found := proposals.next(lambda c: None)) is not None:
        proposal, candidate = found
        tried.append(candidate)
        proposals.tell(Trial(len(tried), candidate, "complete", true[candidate]), proposal)
    assert len(tried) < 0.4 * len(CANDIDATES)
    assert min(true[c] for c in tried) <= 1.02 * min(true.values())
    trust = proposals.trust()
    assert trust is not None
    assert trust["inside"] >= 0.7 * trust["predicted"]
    assert "expected to save" in proposals.ended


def test_starts_are_one_for_each_engine_with_few_bits_first() -> None:
    starts = promising(SPACE.starts())
    assert sorted(c.settings.engine for c in starts) == sorted(SPACE.engines)
    bits = [bits_of(c.settings.weight_format) or 20 for c in starts]
    assert bits == sorted(bits)
    assert [bits_of(n) for n in ("q4_0-head8", "iq4_nl", "int4-g64-sym", "bf16", "fp32", "native")] == [
        4, 4, 4, 16, 32, None,
    ]  # fmt: skip


# -- memory ----------------------------------------------------------------------------------------


def test_a_search_remembers_what_the_last_one_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    memory = Memory("ab" * 32, "machine")
    assert memory.observations(SPACE, "w", 1.0) == []
    trials = [
        Trial(0, CANDIDATES[0], "complete", 0.02, figures={"quality_drop": {"drop": 0.01}}),
        Trial(1, CANDIDATES[1], "pruned", 0.03),
        Trial(2, CANDIDATES[2], "failed", None, "it died"),
        Trial(
            3, Candidate(Settings(engine="llamacpp", weight_format="native", max_context=64)), "complete", 1.0
        ),
    ]
    memory.keep(trials, "run-1", "w", 0.02)
    found = memory.observations(SPACE, "w", 0.04)
    assert [o.point for o in found] == [SPACE.parameters(c) for c in CANDIDATES[:2]]
    assert found[0].log_cost == pytest.approx(np.log(0.04))  # the reference load is twice as slow now
    assert [o.looked for o in found] == [False, True]
    assert found[0].drop == 0.01
    assert all(o.run == "run-1" for o in found)
    assert memory.observations(SPACE, "other", 0.04)[0].drop is None
    memory.file.write_text("{damaged")
    assert memory.observations(SPACE, "w", 0.04) == []
    memory.file.write_text(json.dumps([{"settings": {"engine": "steam"}}, 3]))
    assert memory.observations(SPACE, "w", 0.04) == []


def test_what_is_remembered_spares_trials() -> None:
    true = {c: float(np.exp(v)) for c, v in zip(CANDIDATES, table(4), strict=True)}
    earlier = [
        Observation(SPACE.parameters(c), float(np.log(v)) + 0.1, identity=c.arithmetic, run="before")
        for c, v in list(true.items())[::3]
    ]
    proposals = Proposals(SPACE, "default", 0, starts=SPACE.starts(), earlier=earlier)
    best, tried = float("inf"), 0
    while best > 1.03 * min(true.values()):
        found = proposals.next(lambda c: None)
        assert found is not None
        best, tried = min(best, true[found[1]]), tried + 1
        proposals.tell(Trial(tried, found[1], "complete", true[found[1]]), found[0])
    assert tried <= 8


def test_what_was_seen_in_one_batch_spares_no_first_look_at_another() -> None:
    """Engines that were tried one by one are tried in the large batch before any model is asked."""
    alone = [c for c in CANDIDATES if c.settings.batch == 1]
    earlier = [Observation(SPACE.parameters(c), 0.0, identity=c.arithmetic, run="before") for c in alone]
    starts = promising(SPACE.starts())
    assert {c.settings.batch for c in starts} == {8}
    proposals = Proposals(SPACE, "default", 0, starts=SPACE.starts(), earlier=earlier)
    for start in starts:
        found = proposals.next(lambda c: None)
        assert found is not None
        assert found[1] == start
        proposals.tell(Trial(0, start, "complete", 1.0), found[0])
    everything = [Observation(SPACE.parameters(c), 0.0, identity=c.arithmetic, run="b") for c in CANDIDATES]
    spared = Proposals(SPACE, "default", 0, starts=SPACE.starts(), earlier=everything[:-1])
    left = spared.next(lambda c: None)
    assert left is None or left[1] not in starts


def test_a_space_too_large_to_enumerate_is_searched_all_the_same() -> None:
    def large(choose: object) -> dict[str, int]:
        return {f"d{k}": choose(f"d{k}", tuple(range(8))) for k in range(6)}  # type: ignore[operator]

    assert len(list(points(large, 5000))) == 5000
    sampler = Sampler(strategy("default", 0))
    best = float("inf")
    for _ in range(40):
        try:
            proposal, made = sampler.ask(large)
        except Exhausted:
            break
        value = sum(0.1 * abs(v - 3) for v in made.values())
        best = min(best, value)
        sampler.tell(proposal, Outcome((value,)))
    assert best <= 0.3  # the mean of the space is 1.2


def test_intervals_hold_on_a_recorded_landscape() -> None:
    """What was measured on a real machine, disturbed as it was: costs of 66 ways of running one model."""
    recorded = Landscape.read(Path(__file__).parents[2] / "benchmarks" / "landscapes" / "smollm2-b1.json")
    seen = []
    for settings in recorded.points:
        candidate = Candidate(settings)
        point = {**recorded.space.parameters(candidate), **traits(candidate)}
        seen.append((point, float(np.log(recorded.cost(settings)))))
    inside = total = 0
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(seen))
        predictor = Predictor([Observation(*seen[i]) for i in order[:20]])
        rest = [seen[i] for i in order[20:]]
        low, high = predictor.costs([point for point, _ in rest]).interval(0.9)
        values = np.asarray([value for _, value in rest])
        inside += int(((low <= values) & (values <= high)).sum())
        total += len(rest)
    assert inside / total >= 0.75
    assert inside < total  # not so wide that they say nothing
