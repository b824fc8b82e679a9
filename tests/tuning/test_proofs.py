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


def test_each_proof_is_counted_once_even_when_it_is_begun_again(tmp_path: Path) -> None:
    nothing: Any = None
    with Run.create("tune", path=tmp_path / "run") as run:
        prover = Prover(run, nothing, nothing, Constraints(), [], [], 0, lambda text: None, lambda: 1.0)
        first, second = list(SPACE.grid())[:2]
        assert [prover._counted("quality", c) for c in (first, second, first)] == [1, 2, 1]
        assert prover._counted("latency", second) == 1
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
    assert "59" in prospect_of_latency(20, 0.95)
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
