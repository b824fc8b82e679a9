"""The proof of quality on candidates whose true drop is known: it errs as rarely as it says, and stops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from negawatt.engine import Settings
from negawatt.profiling.quality import Quality
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.judge import Judge, _looks
from negawatt.workload import ChooseItem, Workload

BASELINE, CANDIDATE = (Candidate(Settings(engine=name)) for name in ("transformers", "llamacpp"))
ITEMS = tuple(ChooseItem(f"i{n}", "context", ("a", "b"), 0) for n in range(1200))
WORKLOAD = Workload("w", "", "", "", (), ITEMS, {"choose": "accuracy"})


class KnownScores:
    """A double of `Answers` whose answers are drawn with known probabilities instead of asked of a model."""

    labelled = True

    def __init__(self, drop: float, discordance: float, rng: np.random.Generator) -> None:
        lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
        before = rng.random(len(ITEMS)) < 0.62
        after = before.copy()
        after[before & (rng.random(len(ITEMS)) < lost / 0.62)] = False
        after[~before & (rng.random(len(ITEMS)) < gained / 0.38)] = True
        self.answers = {BASELINE: before, CANDIDATE: after}
        self.asked = 0
        self.item_s = 0.0

    def foreseen_s(self, candidate: Candidate, items: object) -> float:
        return self.item_s * len(list(items))  # type: ignore[call-overload]

    def quality(self, candidate: Candidate, items: object, tick: Callable[[str], None]) -> Quality:
        n = len(list(items))  # type: ignore[call-overload]
        self.asked = max(self.asked, n)
        answers = self.answers[candidate]
        return Quality("accuracy", {f"i{k}": float(answers[k]) for k in range(n)})


def proof(
    drop: float,
    discordance: float,
    seed: int,
    limit: float = 0.02,
    time_left: float = 1.0,
    item_s: float = 0.0,
) -> tuple[bool, int, str]:
    judge = Judge.__new__(Judge)
    scores = KnownScores(drop, discordance, np.random.default_rng(seed))
    scores.item_s = item_s
    judge.__dict__.update(workload=WORKLOAD, baseline=BASELINE, confidence=0.95, scores=scores)
    found = judge.prove(
        CANDIDATE, ITEMS, limit, fewest=0, tick=lambda text: None, time_left=lambda: time_left
    )
    return found.proved, scores.asked, found.reason


def test_a_candidate_at_the_limit_passes_in_at_most_one_in_twenty() -> None:
    """Four looks, each at a quarter of the error: 400 candidates whose true drop is the limit itself."""
    passed = sum(proof(0.02, 0.06, seed)[0] for seed in range(400))
    assert passed <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_a_candidate_that_answers_the_same_is_proved_early() -> None:
    proved, asked, _ = proof(0.0, 0.0, 1)
    assert proved
    assert asked <= len(ITEMS) / 2


def test_a_bad_candidate_is_given_up_early_with_the_reason() -> None:
    proved, asked, reason = proof(0.15, 0.2, 1)
    assert not proved
    assert asked <= len(ITEMS) / 2
    assert "drops by more than 2.00%" in reason or "cannot be proved" in reason


def test_a_screening_of_few_items_keeps_what_may_yet_be_proved() -> None:
    """Forty answers that did not change leave a wide bound; it shrinks as the items grow."""
    judge = Judge.__new__(Judge)
    scores = KnownScores(0.0, 0.0, np.random.default_rng(0))
    judge.__dict__.update(workload=WORKLOAD, baseline=BASELINE, confidence=0.95, scores=scores)
    _, reason = judge.screen(CANDIDATE, ITEMS[:96], 0.01, 1104, lambda text: None)
    assert reason == ""


def test_a_screening_of_graded_scores_goes_by_how_far_they_change() -> None:
    """One in twenty moves by a fifth, as ranks do: as answers that change wholly 1 % could not be proved."""
    proved = kept = 0
    for seed in range(20):
        scores = KnownScores(0.0, 0.05, np.random.default_rng(seed))
        scores.answers = {who: 0.4 + 0.2 * answers for who, answers in scores.answers.items()}
        judge = Judge.__new__(Judge)
        judge.__dict__.update(workload=WORKLOAD, baseline=BASELINE, confidence=0.95, scores=scores)
        _, reason = judge.screen(CANDIDATE, ITEMS[:96], 0.01, 1104, lambda text: None)
        kept += reason == ""
        proved += judge.prove(
            CANDIDATE, ITEMS, 0.01, fewest=0, tick=lambda text: None, time_left=lambda: 1.0
        ).proved
    assert proved >= 18 and kept >= 18


@pytest.mark.parametrize("discordance", [0.005, 0.01, 0.015])
def test_screening_loses_few_that_the_proof_would_accept(discordance: float) -> None:
    lost = could = 0
    for seed in range(60):
        judge = Judge.__new__(Judge)
        scores = KnownScores(0.0, discordance, np.random.default_rng(seed))
        judge.__dict__.update(workload=WORKLOAD, baseline=BASELINE, confidence=0.95, scores=scores)
        accepted, _, _ = proof(0.0, discordance, seed, limit=0.01)
        could += accepted
        _, reason = judge.screen(CANDIDATE, ITEMS[:96], 0.01, 1104, lambda text: None)
        lost += accepted and bool(reason)
    assert could > 20
    assert lost <= 0.1 * could


def test_good_candidates_that_change_little_are_mostly_proved() -> None:
    assert sum(proof(0.0, 0.02, seed)[0] for seed in range(60)) > 50


def test_the_end_of_the_time_ends_the_proof() -> None:
    proved, _, reason = proof(0.0, 0.05, 3, limit=0.015, time_left=0.0)
    assert not proved
    assert "no time for more" in reason or "cannot be proved" in reason


def test_a_proof_asks_no_more_than_there_is_time_for() -> None:
    """Each item takes two seconds of both together; all 1,200 would take 40 minutes."""
    proved, asked, _ = proof(0.0, 0.0, 1, limit=0.1, time_left=600.0, item_s=1.0)
    assert proved
    assert asked <= 300
    proved, asked, reason = proof(0.0, 0.01, 3, limit=0.01, time_left=320.0, item_s=1.0)
    assert not proved
    assert 150 <= asked <= 160
    assert "no time for more than" in reason


@pytest.mark.parametrize(("n", "fewest"), [(1, 0), (5, 0), (100, 1000), (1404, 1000), (1404, 0), (60, 59)])
def test_looks_grow_to_all_items_and_start_with_enough(n: int, fewest: int) -> None:
    looks = _looks(n, fewest)
    assert looks == sorted(set(looks))
    assert looks[-1] == n
    assert looks[0] >= min(fewest, n)
    assert len(looks) <= 4
