"""What a search would end with now, and what that makes worth trying."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from negawatt.artifact.shape import ModelShape
from negawatt.engine import Settings
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, Study
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.outlook import Outlook
from negawatt.tuning.portfolio import expected_cost, weights
from negawatt.tuning.predicted import PredictedStrategy, traits
from negawatt.tuning.sampler import Outcome, Sampler
from negawatt.tuning.tree import Choose
from negawatt.tuning.trial import Trial
from negawatt.workload.items import ChooseItem

BASELINE = Candidate(Settings(engine="transformers", weight_format="fp32"))
GPTQ = "gptq:bits=4,group=32"
SHAPE = ModelShape("llama", 30, 576, 9, 3, 64, 1536, 49152, 135_000_000, True, 2048)


def test_the_cheapest_that_is_proved() -> None:
    costs, chances = np.array([9.0, 5.0, 80.0]), np.array([0.9, 0.2, 1.0])
    assert weights(costs, chances) == pytest.approx([0.72, 0.2, 0.08])
    assert expected_cost(zip(costs, chances, strict=True)) == pytest.approx(9 * 0.72 + 5 * 0.2 + 80 * 0.08)


def test_nothing_that_can_be_proved_is_no_cost() -> None:
    assert expected_cost([]) == math.inf
    assert expected_cost([(3.0, 0.0)]) == math.inf
    assert expected_cost([(3.0, 0.5)]) == 3.0


def of(run: Run, outlook: Outlook | None = None) -> Study:
    """A study that is only asked what it makes of trials."""
    workshop = SimpleNamespace(is_made=lambda made: False)
    judge: Any = SimpleNamespace(confidence=0.95, workload=SimpleNamespace(hash=""), workshop=workshop)
    traffic: Any = None
    items = [ChooseItem(str(i), "q", ("a", "b"), 0) for i in range(96)]
    space = Space(("llamacpp",), (1,), (1,), 512, {})
    limits = Constraints(max_quality_drop=0.03)
    return Study(run, space, limits, judge, BASELINE, traffic, items, 1148, 0, outlook=outlook)


def test_what_is_dearer_and_safe_is_judged_beside_what_is_cheap_and_hardly_proved(tmp_path: Path) -> None:
    """Four bits that lose too much are no rival of eight bits at twice the cost."""
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = of(run)
        study.keep(Trial(0, BASELINE, "complete", 100.0, figures={"screen_cost": 100.0}))
        coarse = Candidate(Settings(engine="llamacpp", weight_format="q4_0"))
        lost = {"drop": 0.0417, "n": 96, "changed": 16}
        study.keep(Trial(1, coarse, "complete", 5.0, figures={"screen_cost": 5.0, "quality_drop": lost}))
        assert study.chance(study.trials[1]) < 0.25
        careful = Candidate(Settings(engine="llamacpp", weight_format="q8_0"))
        same = {"drop": 0.0, "n": 96, "changed": 1}
        trial = Trial(2, careful, "complete", 10.0, figures={"screen_cost": 10.0, "quality_drop": same})
        assert study.worth_judging(trial)
        study.keep(trial)
        assert study.chance(trial) > 0.8
        assert not study.worth_judging(Trial(3, replaced(careful, "q4_1"), "complete", 40.0))


def replaced(candidate: Candidate, weight_format: str) -> Candidate:
    return Candidate(candidate.settings.replace(weight_format=weight_format))


@pytest.mark.parametrize("likely", [False, True])
def test_a_pass_is_made_where_an_engines_own_four_bits_will_hardly_do(likely: bool, tmp_path: Path) -> None:
    """It cannot come below their cost, but may be proved where they are not."""
    outlook = Outlook({"": SHAPE})
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = of(run, outlook)
        lost = {"drop": 0.0, "n": 96, "changed": 0} if likely else {"drop": 0.04, "n": 96, "changed": 16}
        for number, (weight_format, cost, bits, seen) in enumerate(
            (("q8_0", 10.0, 8.5, {"drop": 0.0, "n": 96, "changed": 1}), ("q4_0", 5.6, 4.5, lost))
        ):
            figures = {
                "screen_cost": cost, "read_bytes": [106e6 * bits / 8, 28e6 * bits / 8], "quality_drop": seen
            }  # fmt: skip
            candidate = Candidate(Settings(engine="llamacpp", weight_format=weight_format))
            study.keep(Trial(number, candidate, "complete", cost, figures=figures))
        study._time_left = lambda: 300.0
        made = Candidate(Settings(engine="llamacpp", weight_format="native"), (GPTQ,))
        against = study._reason_to_skip(made)
        assert (against is not None) == likely
        assert against is None or "what is expected without it" in against.reason


def pick(choose: Choose) -> Candidate:
    passes = (GPTQ,) if choose("pass gptq", ("no", "yes")) == "yes" else ()
    weight_format = "native" if passes else "q8_0"
    settings = Settings(engine="llamacpp", weight_format=weight_format, threads=choose("threads", (2, 1)))
    return Candidate(settings, passes)


def test_what_is_made_for_the_first_time_runs_as_it_is_foretold_to_cost_least() -> None:
    sampler = Sampler(PredictedStrategy(0, identity=lambda c: c.arithmetic, traits=traits))
    for threads, cost in ((1, 10.0), (2, 13.0)):
        sampler.inject(pick, {"pass gptq": "no", "threads": threads}, Outcome((math.log(cost),), spent=cost))
    made = sampler.ask(pick)[1]
    assert made.passes == (GPTQ,)
    assert made.settings.threads == 1


def test_what_a_pass_packed_is_seen_by_its_bits() -> None:
    packed = Candidate(Settings(engine="llamacpp", weight_format="native"), (GPTQ,))
    plain = Candidate(Settings(engine="llamacpp", weight_format="q4_0"))
    native = Candidate(Settings(engine="llamacpp", weight_format="native"))
    assert traits(packed)["\0bits"] == traits(plain)["\0bits"] == 4
    assert traits(native)["\0bits"] is None
