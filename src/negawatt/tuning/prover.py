"""`Prover`: from ranked finalists the first whose quality and latency are proved, with an honest error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from negawatt.profiling.scores import Items
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.finals import Finals
from negawatt.tuning.judge import Judge, Proof
from negawatt.tuning.latency import LatencyProof, latency_confidence, latency_proofs
from negawatt.tuning.refine import refined
from negawatt.tuning.shortfall import why_nothing
from negawatt.tuning.standby import faithful, standby
from negawatt.tuning.study import Study
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import Trial, difference_json
from negawatt.tuning.verdict import Constraints

FINALISTS = 4
LEAST_CHANCE = 0.05
"""With something proved that stands by, what is less likely to be proved is not tried."""
FINALIST_WITHIN = 1.25
"""Finalists cost at most this times the cheapest; dearer ones have their turn when those fail."""
UNLIMITED_ITEMS = 96
"""Items on which the difference is told where there is no limit to prove."""


@dataclass(frozen=True)
class Proved:
    """What came of proving.

    Attributes:
        winner: the first candidate that kept every limit; None where none did.
        quality: the last proof of quality, the winner's where there is one; None where nothing was judged.
        latencies: the winner's.
        hasty: a proof lacked nothing but time.
    """

    winner: Candidate | None
    quality: Proof | None
    latencies: tuple[LatencyProof, ...] = ()
    hasty: bool = False


class Prover:
    """Proves one candidate after the other, and numbers them: each has a share of the allowed error.

    Every proof is a record of the run before the next begins, so that a search that was killed does not get
    its error back.

    Args:
        run, judge, finals, constraints: of the search.
        items: quality items held out from it.
        traffic: to bound latencies on, what is held out from the search first.
        fewest: quality items that a proof needs at least.
        tick: told what goes on.
        time_left: seconds that proofs may still use.
    """

    def __init__(
        self,
        run: Run,
        judge: Judge,
        finals: Finals,
        constraints: Constraints,
        items: Items,
        traffic: Sequence[Traffic],
        fewest: int,
        tick: Callable[[str], None],
        time_left: Callable[[], float],
    ) -> None:
        self.run, self.judge, self.finals, self.constraints = run, judge, finals, constraints
        self.items, self.traffic, self.fewest = items, traffic, fewest
        self.tick, self.time_left = tick, time_left

    def decide(
        self,
        study: Study,
        rank: Callable[[Sequence[Candidate]], list[Candidate]],
        search_on: Callable[[], None],
        offer: Callable[[], None] = lambda: None,
    ) -> tuple[Proved, list[str]]:
        """Finalists and proofs in turn, until one is proved or nothing cheaper than the baseline is left.

        Where the cheapest may well fail its proof, one that is likelier to pass is proved first and stands
        by: the time may be over before a bolder one is proved.

        Args:
            offer: adds cascades of what was tried to the study.
            rank: finalists by fresh measurements, cheapest first; what no longer runs is left out.
            search_on: lets the study search on after a refutation.

        Returns:
            What was proved, and the reasons why other candidates were not chosen.
        """
        reasons: list[str] = []
        proved, most = Proved(None, None), math.inf
        offer()
        standing_by = self._standing_by(study, reasons)
        if standing_by.winner is not None:
            most = min(_cost(t) for t in study.trials if t.candidate == standing_by.winner)
            self._pass_over(study, most)
        hope = LEAST_CHANCE if standing_by.winner is not None else 0.0

        def over() -> bool:
            return standing_by.winner is not None and self.time_left() <= 0

        while proved.winner is None and not over() and (chosen := finalists(study, most, hope)):
            ranked = rank([trial.candidate for trial in chosen])
            for lost in [t for t in chosen if t.candidate not in ranked]:
                study.drop(lost.candidate, "it ran during the search but not any more; see the notes")
            proved = self.first_proved(study, ranked, reasons)
            if proved.hasty or over():
                break
            if proved.winner is None:
                search_on()
                offer()
        if proved.winner is None and standing_by.winner is not None:
            return standing_by, reasons
        if proved.winner is None and not reasons:
            reasons.append(why_nothing(study.trials))
        return proved, reasons

    def _pass_over(self, study: Study, most: float) -> None:
        """Note what is cheaper than what stands by, and will hardly be proved."""
        for trial in finalists(study, most):
            if (chance := study.chance(trial)) < LEAST_CHANCE:
                text = f"its answers so far leave a chance of {chance:.1%} to prove its quality"
                self.run.append("note", {"text": f"Passed over: {trial.candidate}: {text}"})

    def _standing_by(self, study: Study, reasons: list[str]) -> Proved:
        """What is proved before bolder finalists; it has the second share of the error, they the first."""
        if self.constraints.max_quality_drop is None or not self.items:
            return Proved(None, None)
        trial = standby(study.trials, [trial.candidate for trial in finalists(study)], study.chance)
        if trial is None:
            return Proved(None, None)
        arithmetic = trial.candidate.arithmetic
        trial = refined(
            study, trial, lambda c: c.arithmetic == arithmetic or faithful(c), self.time_left, self.tick
        )
        self.tick(f"proving {trial.candidate} first, which hardly changes an answer")
        return self.first_proved(study, [trial.candidate], reasons, number=2)

    def first_proved(
        self, study: Study, ranked: Sequence[Candidate], reasons: list[str], number: int = 1
    ) -> Proved:
        """The first of the finalists that is proved to keep every limit.

        Args:
            study: told of what is refuted.
            ranked: cheapest first.
            reasons: why candidates are not chosen, appended to.
            number: of a proof at least; see `shares_of_error`.
        """
        quality: Proof | None = None
        for candidate in ranked:
            if any(t.candidate == candidate and t.violations for t in study.trials):
                continue  # one of the same arithmetic has just failed its proof
            quality = self._quality(candidate, number)
            if quality is not None and not quality.proved:
                self._refused(candidate, quality.reason, reasons)
                if quality.hasty:
                    return Proved(None, quality, hasty=True)
                figures = {"quality_drop": difference_json(quality.difference)}
                study.refute(candidate, quality.reason, figures)
                continue
            latencies = self._latencies(candidate, number)
            slow = [each for each in latencies if not each.kept]
            if not slow:
                return Proved(candidate, quality, tuple(latencies))
            reason = "; ".join(each.text for each in slow)
            self._refused(candidate, reason, reasons)
            study.too_slow(candidate, [each.name for each in slow], reason)
        return Proved(None, quality)

    def _refused(self, candidate: Candidate, reason: str, reasons: list[str]) -> None:
        reasons.append(f"{candidate}: {reason}.")
        self.run.append("note", {"text": f"Not chosen: {candidate}: {reason}"})

    def _quality(self, candidate: Candidate, least: int) -> Proof | None:
        """Quality on the held-out items; None where there is nothing to prove."""
        limit = self.constraints.max_quality_drop
        if not self.items:
            return None
        if limit is None:
            few = self.items[: max(self.fewest, UNLIMITED_ITEMS)]
            return Proof(True, self.judge.compare(candidate, few, self.tick, self.judge.confidence))
        number = self._numbered("quality", candidate, least)
        return self.judge.prove(
            candidate,
            self.items,
            limit,
            fewest=self.fewest,
            tick=self.tick,
            time_left=self.time_left,
            number=number,
        )

    def _latencies(self, candidate: Candidate, least: int) -> list[LatencyProof]:
        if self.constraints.p95_ttft_ms is None and self.constraints.p95_tpot_ms is None:
            return []
        number = self._numbered("latency", candidate, least)
        answers = self.finals.answers(candidate, self.traffic, self.time_left)
        confidence = latency_confidence(self.judge.confidence, number)
        return latency_proofs(self.constraints, answers, confidence)

    def _numbered(self, kind: str, candidate: Candidate, least: int = 1) -> int:
        """The number of a proof that begins now: the first free one from `least` on.

        One that began before, and was cut off, keeps its number.
        """
        begun = [r for r in self.run.records("proof") if r["kind"] == kind]
        same = [r for r in begun if Candidate.from_json(r) == candidate]
        if same:
            return int(same[-1]["number"])
        taken = {int(r["number"]) for r in begun}
        number = next(n for n in count(least) if n not in taken)
        self.run.append("proof", {"kind": kind, "number": number, **candidate.to_json()})
        return number


def finalists(study: Study, below: float = math.inf, hope: float = 0.0) -> list[Trial]:
    """The cheapest feasible trials other than the baseline that cost less than it, and less than `below`.

    Args:
        hope: chance to be proved that they have at least.
    """
    limit = min((_cost(t) for t in study.trials if t.candidate == study.baseline), default=math.inf)
    limit = min(limit, below)
    good = [t for t in study.trials if t.feasible and t.candidate != study.baseline and _cost(t) < limit]
    good = [t for t in good if not hope or study.chance(t) >= hope]
    best = min((_cost(t) for t in good), default=math.inf)
    return sorted((t for t in good if _cost(t) <= FINALIST_WITHIN * best), key=_cost)[:FINALISTS]


def _cost(trial: Trial) -> float:
    return math.inf if trial.cost is None else trial.cost
