"""Searches whose truth is known: an honest double of engines and answers, under the real study and proofs.

What an engine would measure and a model would answer is drawn at random with known costs and known drops of
quality. All that decides is the real thing: `Study`, its strategy, `Judge` with its screening, looks and
bounds, `Prover`, and `verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from negawatt.engine import Settings
from negawatt.profiling.profiler import baseline_ratio
from negawatt.profiling.quality import Quality
from negawatt.profiling.scores import Items
from negawatt.run import Run
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import SCREEN_FACTOR
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.finals import FINAL_ROUNDS
from negawatt.tuning.judge import Judge
from negawatt.tuning.prover import Prover
from negawatt.tuning.space import Space
from negawatt.tuning.study import Study
from negawatt.tuning.trial import Trial
from negawatt.tuning.verdict import Constraints, Verdict, verdict
from negawatt.workload import ChooseItem, Workload

SPACE = Space(("llamacpp",), (1,), (1, 2), 512, {})
BASELINE = Candidate(Settings(engine="transformers", weight_format="fp32", max_context=512))
RIGHT = 0.62
"""Share of the questions that the baseline answers rightly."""
NOISE = 0.05
"""Of a cost measured once; `DRIFT` is what two measurements side by side have in common."""
DRIFT = 0.08


@dataclass(frozen=True)
class World:
    """What is true of a simulated search.

    Attributes:
        costs: candidate → seconds per token.
        lost, gained: arithmetic → shares of the items that it answers wrongly where the baseline is right,
            and rightly where it is wrong.
    """

    costs: dict[Candidate, float]
    lost: dict[tuple[str, ...], float]
    gained: dict[tuple[str, ...], float]

    def drop(self, candidate: Candidate) -> float:
        """The true drop of quality."""
        return self.lost[candidate.arithmetic] - self.gained[candidate.arithmetic]


def world(
    rng: np.random.Generator, drop_of: Callable[[int], float], cost_of: Callable[[int], float]
) -> World:
    """A world on `SPACE`.

    Args:
        drop_of: the true drop of the n-th arithmetic.
        cost_of: the true cost of the n-th arithmetic, where the baseline's is 1.
    """
    numbers: dict[tuple[str, ...], int] = {}
    costs, lost, gained = {BASELINE: 1.0}, {BASELINE.arithmetic: 0.0}, {BASELINE.arithmetic: 0.0}
    for candidate in SPACE.grid():
        number = numbers.setdefault(candidate.arithmetic, len(numbers))
        costs[candidate] = cost_of(number) * (1.1 if candidate.settings.threads == 2 else 1.0)
        if candidate.arithmetic not in lost:
            drop, more = drop_of(number), float(rng.uniform(0.0, 0.01))
            lost[candidate.arithmetic], gained[candidate.arithmetic] = drop + more, more
    return World(costs, lost, gained)


class SimulatedAnswers:
    """A double of `Answers`: each arithmetic's scores are drawn once, item by item."""

    labelled, spent_cpu_s = True, 0.0

    def __init__(self, truth: World, items: Items, rng: np.random.Generator, item_s: float) -> None:
        self._truth, self._rng, self._item_s = truth, rng, item_s
        self._places = {item.id: place for place, item in enumerate(items)}
        self._right = rng.random(len(items)) < RIGHT
        self._drawn: dict[tuple[str, ...], Any] = {BASELINE.arithmetic: self._right}

    def quality(self, candidate: Candidate, items: Items, tick: object = None) -> Quality:
        answers = self._answers(candidate)
        return Quality("accuracy", {item.id: float(answers[self._places[item.id]]) for item in items})

    known = quality

    def foreseen_s(self, candidate: Candidate, items: Items) -> float:
        return self._item_s * len(items)

    def close(self) -> None:
        """Nothing is open."""

    def _answers(self, candidate: Candidate) -> Any:
        key = candidate.arithmetic
        if key not in self._drawn:
            dice, right = self._rng.random(self._right.size), self._right
            lost, gained = self._truth.lost[key] / RIGHT, self._truth.gained[key] / (1 - RIGHT)
            self._drawn[key] = np.where(right, dice >= lost, dice < gained)
        return self._drawn[key]


class SimulatedStudy(Study):
    """A double of the study whose trials draw what they cost; quality is judged as ever."""

    truth: World
    rng: np.random.Generator

    def look(self, candidate: Candidate) -> Look | Trial:
        cost = self._seen(candidate)
        return Look(cost, cost, 0, cost)

    def try_candidate(
        self, candidate: Candidate, tick: Callable[[str], None], *, screen: bool = True
    ) -> Trial:
        look, cost = self._seen(candidate), self._seen(candidate)
        best = min((t.figures["screen_cost"] for t in self.trials if t.feasible), default=np.inf)
        figures = {"screen_cost": look}
        if screen and look > SCREEN_FACTOR * best:
            return Trial(len(self.trials), candidate, "pruned", look, figures=figures)
        return self._judged(Trial(len(self.trials), candidate, "complete", cost, figures=figures), tick)

    def _seen(self, candidate: Candidate) -> float:
        return self.truth.costs[candidate] * float(np.exp(NOISE * self.rng.normal()))


@dataclass(frozen=True)
class Simulated:
    """What a simulated search said, beside the truth.

    Attributes:
        verdict: the real one.
        winner: what was proved, whether or not it turned out cheaper.
        true_drop, true_ratio: of the winner: its drop, and how many times dearer the baseline is.
    """

    verdict: Verdict
    winner: Candidate | None
    true_drop: float
    true_ratio: float


def simulate(
    truth: World,
    path: Path,
    rng: np.random.Generator,
    *,
    limit: float = 0.01,
    n_items: int = 1500,
    n_search: int = 96,
    confidence: float = 0.95,
    strategy: str = "default",
    most_trials: int = 25,
    time_left_s: float = 1.0,
    item_s: float = 0.0,
) -> Simulated:
    """One search, from the baseline's measurement to the verdict.

    Args:
        path: of the run; must not exist.
        limit: on the drop of quality.
        n_items, n_search: quality items in all, and those of them that the search may see.
        most_trials: of the search, and of each time that it goes on after a refutation.
        time_left_s: what proofs are told whenever they ask.
        item_s: what they are told that an item takes.
    """
    items = tuple(ChooseItem(f"i{n}", "context", ("a", "b"), 0) for n in range(n_items))
    workload = Workload("simulated", "", "", "", (), items, {"choose": "accuracy"})
    constraints = Constraints(max_quality_drop=limit)
    judge = Judge.__new__(Judge)
    judge.workshop = SimpleNamespace(shapes={})  # type: ignore[assignment]
    judge.workload, judge.baseline, judge.confidence = workload, BASELINE, confidence
    judge.scores = SimulatedAnswers(truth, items, rng, item_s)  # type: ignore[assignment]
    held_out = items[n_search:]
    seed = int(rng.integers(2**31))
    with Run.create("tune", path=path, reference_load_s=1.0) as run:
        no_traffic: Any = None  # nothing is run
        study = SimulatedStudy(
            run, SPACE, constraints, judge, BASELINE, no_traffic, items[:n_search], len(held_out), seed,
            strategy,
        )  # fmt: skip
        study.truth, study.rng = truth, rng
        prover = Prover(
            run, judge, None, constraints, held_out, [], 0, lambda text: None, lambda: time_left_s  # type: ignore[arg-type]
        )  # fmt: skip

        def search() -> None:
            until = len(study.trials) + most_trials
            study.search(lambda: until - len(study.trials), lambda text: None)

        def rank(finalists: Sequence[Candidate]) -> list[Candidate]:
            return sorted(finalists, key=study._seen)

        search()
        proved, reasons = prover.decide(study, rank, search)
    winner = proved.winner
    ratio = None if winner is None else baseline_ratio(*_in_turn(truth, winner, rng))
    quality = proved.quality.difference if proved.quality else None
    said = verdict(BASELINE, winner, ratio, quality, constraints, reasons)
    if winner is None:
        return Simulated(said, None, 0.0, 1.0)
    return Simulated(said, winner, truth.drop(winner), 1.0 / truth.costs[winner])


def _in_turn(truth: World, winner: Candidate, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Costs of the baseline and the winner in interleaved windows, whose drift they share."""
    drift = np.exp(DRIFT * rng.normal(size=FINAL_ROUNDS))
    before, after = (
        truth.costs[c] * drift * np.exp(NOISE * rng.normal(size=FINAL_ROUNDS)) for c in (BASELINE, winner)
    )
    return before.tolist(), after.tolist()
