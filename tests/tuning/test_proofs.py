"""Verdicts whose truth is known, through the real study and proofs; what is told and refused before them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from negawatt.engine import Completion
from negawatt.errors import Infeasible
from negawatt.run import Run
from negawatt.testing.simulated_search import SPACE, Simulated, World, simulate, world
from negawatt.tuning import Constraints
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.latency import latency_confidence, latency_proofs
from negawatt.tuning.prospect import prospect_of_latency, prospect_of_quality
from negawatt.tuning.prover import Prover
from negawatt.tuning.standby import SURE, chance_of_proof, standby
from negawatt.tuning.trial import Trial
from negawatt.workload import ChooseItem, Workload
from negawatt.workload.sequential import shares_of_error

LIMIT = 0.03


@pytest.fixture(autouse=True)
def quick_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of records of simulated runs need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def searched(path: Path, make: Any, n: int) -> list[Simulated]:
    found = []
    for number in range(n):
        rng = np.random.default_rng([7, number])
        found.append(
            simulate(make(rng), path / str(number), rng, limit=LIMIT, strategy="random", most_trials=12)
        )
    return found


def trap(rng: np.random.Generator) -> World:
    """Everything is cheaper, and breaks the limit by a little: whatever is accepted is wrong."""
    return world(rng, lambda n: LIMIT + 1e-4, lambda n: 0.3 + 0.05 * n)


def test_a_verdict_seldom_breaks_the_bound_where_every_candidate_does(tmp_path: Path) -> None:
    found = searched(tmp_path, trap, 30)
    wrong = sum(one.verdict.accepted for one in found)
    assert wrong <= 30 * 0.05 + 3 * np.sqrt(30 * 0.05 * 0.95)
    assert sum("cannot be proved" in one.verdict.text or "drops" in one.verdict.text for one in found) > 15


def test_no_difference_is_said_where_there_is_none(tmp_path: Path) -> None:
    found = searched(tmp_path, lambda rng: world(rng, lambda n: 0.0, lambda n: 1.0), 30)
    assert sum(one.verdict.accepted for one in found) <= 30 * 0.05 + 3 * np.sqrt(30 * 0.05 * 0.95)


def test_a_good_candidate_is_found_and_proved(tmp_path: Path) -> None:
    """One in four is as good as the baseline and half as dear; the others are cheaper and forget."""
    found = searched(
        tmp_path,
        lambda rng: world(rng, lambda n: 0.0 if n % 4 == 0 else 0.2, lambda n: 0.5 if n % 4 == 0 else 0.4),
        8,
    )
    good = [one for one in found if one.verdict.accepted]
    assert len(good) >= 6
    assert all(one.true_drop <= LIMIT and one.true_ratio > 1.5 for one in good)
    assert all("95% over all looks and candidates" in one.verdict.text for one in good)


def bold_and_faithful(rng: np.random.Generator) -> World:
    """Weights of few bits cost least and change one answer in six; those of eight or more change none."""
    made = world(rng, lambda n: 0.0, lambda n: 0.2)
    for candidate in SPACE.grid():
        key, fmt = candidate.arithmetic, candidate.settings.weight_format
        faithful = fmt in ("native", "q8_0", "f16")
        made.costs[candidate] = (0.5 if faithful else 0.2) * candidate.settings.threads
        made.lost[key], made.gained[key] = (0.0, 0.0) if faithful else (0.09, 0.07)
    return made


def test_what_hardly_changes_an_answer_stands_by_when_there_is_no_time_for_more(tmp_path: Path) -> None:
    for number in range(6):
        rng = np.random.default_rng([3, number])
        path = tmp_path / str(number)
        found = simulate(
            bold_and_faithful(rng), path, rng, limit=0.03, strategy="random", time_left_s=60.0, item_s=0.1
        )
        assert found.winner is not None, found.verdict.text
        assert found.true_drop <= 0.03
        assert found.true_ratio >= 2.0, "its cheapest variant was not proved"
        numbers = [r["number"] for r in Run.open(path).records("proof")]
        assert 2 in numbers
        assert len(set(numbers)) == len(numbers)


def test_what_will_hardly_be_proved_is_passed_over_where_something_stands_by(tmp_path: Path) -> None:
    """Weights of few bits that lose 5 points are cheapest; a proof of them takes time, and of the error."""
    passed = 0
    for number in range(4):
        rng = np.random.default_rng([5, number])
        path, made = tmp_path / str(number), bold_and_faithful(rng)
        bold = {key for key, share in made.lost.items() if share}
        for key in bold:
            made.lost[key], made.gained[key] = 0.09, 0.04
        found = simulate(made, path, rng, limit=0.03, strategy="random", time_left_s=600.0, item_s=0.1)
        assert found.winner is not None and found.true_drop <= 0.03
        with Run.open(path) as run:
            notes = [str(note["text"]) for note in run.records("note")]
            proved = {str(Candidate.from_json(record)) for record in run.records("proof")}
        over = {
            note.partition(": ")[2].partition(": its answers")[0] for note in notes if "Passed over" in note
        }
        assert not over & proved
        passed += len(over)
    assert passed


def test_the_chance_of_a_proof_is_about_right() -> None:
    """Of 600 candidates that a screening gives a chance, about so many are proved on 1,100 other items."""
    rng = np.random.default_rng(5)
    foretold, came = [], []
    for _ in range(600):
        changed = rng.uniform(0.0, 0.15)
        worse = changed * rng.uniform(0.45, 0.65)

        def drawn(n: int, changed: float = changed, worse: float = worse) -> tuple[float, int]:
            lost, gained = rng.binomial(n, worse), rng.binomial(n, changed - worse)
            return (lost - gained) / n, lost + gained

        drop, n_changed = drawn(96)
        seen = {"drop": drop, "changed": n_changed, "n": 96}
        foretold.append(chance_of_proof(seen, 1100, 0.03, 0.95))
        later, all_changed = drawn(1100)
        came.append(later + 1.645 * np.sqrt(all_changed / 1100 / 1100) + 1.645**2 / 1100 <= 0.03)
    sure = [proved for chance, proved in zip(foretold, came, strict=True) if chance >= SURE]
    doubtful = [proved for chance, proved in zip(foretold, came, strict=True) if chance < 0.2]
    assert len(sure) > 150 and np.mean(sure) > 0.8
    assert len(doubtful) > 10 and np.mean(doubtful) < 0.5
    assert np.mean(foretold) == pytest.approx(np.mean(came), abs=0.06)


def test_without_a_sure_one_the_largest_saving_expected_stands_by() -> None:
    """A lossless way whose few answers leave it a chance of a half goes before one of a tenth."""
    ways = list(SPACE.grid())[:4]
    costs, chances = (1.0, 0.10, 0.16, 0.15), (1.0, 0.1, 0.5, 0.25)
    trials = [Trial(n, way, "complete", cost) for n, (way, cost) in enumerate(zip(ways, costs, strict=True))]

    def first(chosen: Candidate, *others: float) -> Trial | None:
        known = dict(zip(ways, others or chances, strict=True))
        return standby(trials, [chosen], lambda trial: known[trial.candidate])

    assert first(ways[1]) is trials[2]
    assert first(ways[1], 1.0, 0.3, 0.5, 0.25) is None, "not so much likelier"
    assert first(ways[1], 1.0, 0.1, 0.9, 0.95) is trials[3], "the cheaper of two that are sure"
    assert first(ways[2], 1.0, 0.1, 0.9, 0.2) is None, "sure itself"
    assert standby(trials, [], lambda trial: 1.0) is None


def test_each_proof_is_counted_once_even_when_it_is_begun_again(tmp_path: Path) -> None:
    nothing: Any = None
    with Run.create("tune", path=tmp_path / "run") as run:
        prover = Prover(run, nothing, nothing, Constraints(), [], [], 0, lambda text: None, lambda: 1.0)
        first, second, third, fourth = list(SPACE.grid())[:4]
        assert [prover._numbered("quality", c) for c in (first, second, first)] == [1, 2, 1]
        assert prover._numbered("latency", second) == 1
        assert [prover._numbered("quality", c, 4) for c in (third, second, third)] == [4, 2, 4]
        assert prover._numbered("quality", fourth) == 3
    assert shares_of_error(2) < shares_of_error(1)


# -- before anything is spent ----------------------------------------------------------------------


def labelled(n: int) -> Workload:
    items = tuple(ChooseItem(f"i{k}", "context", ("a", "b"), 0) for k in range(n))
    return Workload("w", "", "", "", (), items, {"choose": "accuracy"})


def test_what_can_be_proved_is_told_with_the_items_it_takes() -> None:
    text = prospect_of_quality(labelled(1500), 1404, 0.01, 0, 0.95)
    assert "1,404 held-out items" in text
    assert "would need" in text


@pytest.mark.parametrize(("n", "limit"), [(5, 0.01), (60, 0.01), (1404, 0.0)])
def test_what_cannot_be_proved_at_all_is_refused_first(n: int, limit: float) -> None:
    with pytest.raises(Infeasible, match="cannot prove") as found:
        prospect_of_quality(labelled(n), n, limit, 0, 0.95)
    assert len(str(found.value).splitlines()) == 1


def test_the_items_that_a_refusal_asks_for_are_enough() -> None:
    with pytest.raises(Infeasible) as found:
        prospect_of_quality(labelled(60), 60, 0.02, 0, 0.95)
    needed = int(str(found.value).split("takes ")[1].split(" ")[0].replace(",", ""))
    assert prospect_of_quality(labelled(2 * needed), needed + 20, 0.02, 0, 0.95)


# -- latency ---------------------------------------------------------------------------------------


def answered(ms: list[float]) -> list[Completion]:
    made: Any = [SimpleNamespace(token_times_s=[t / 1000, t / 1000 + 0.01, t / 1000 + 0.02]) for t in ms]
    return made  # type: ignore[no-any-return]


def test_a_latency_is_bounded_above_what_was_seen_mostly() -> None:
    times = [float(10 + k % 10) for k in range(61)]
    (proof,) = latency_proofs(Constraints(p95_ttft_ms=25), answered(times), latency_confidence(0.95, 1))
    assert proof.kept
    assert proof.enough
    assert proof.bound_ms == pytest.approx(19)
    (later,) = latency_proofs(Constraints(p95_tpot_ms=5), answered(times), 0.95)
    assert not later.kept
    assert later.bound_ms == pytest.approx(10)


def test_too_few_requests_say_what_they_can_show() -> None:
    (proof,) = latency_proofs(Constraints(p95_ttft_ms=25), answered([10.0] * 20), 0.95)
    assert not proof.enough
    assert proof.confidence == pytest.approx(1 - 0.95**20)
    assert "all that 20 requests can show" in proof.text
    assert "all candidates would take 61" in prospect_of_latency(60, 0.95), "as the proof does"
    assert "95%" in prospect_of_latency(61, 0.95)


def test_the_error_of_all_latency_proofs_stays_below_the_whole() -> None:
    assert sum(1 - latency_confidence(0.95, k) for k in range(1, 40)) <= 0.05


def test_a_slow_candidate_is_noted_and_not_proposed_again(tmp_path: Path) -> None:
    from test_study import Landscape

    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = Landscape(run, 0)
        study.search(lambda: 1.0, lambda text: None)
        assert study.best is not None
        slow: Candidate = study.best.candidate
        study.too_slow(slow, ["p95 TTFT (ms)"], "it was 900 ms")
        assert study.best is not None
        assert study.best.candidate != slow
        best = study.best.candidate
    with Run.open(tmp_path / "run") as run:
        run.lock()
        again = Landscape(run, 0)
        again._take_over()
        assert again.best is not None
        assert again.best.candidate == best
