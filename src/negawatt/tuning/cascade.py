"""`Cascades`: of what a search tried, pairs of models where the small one answers what it is sure of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from negawatt.errors import EngineError, WorkloadError
from negawatt.profiling.threshold import Threshold, Tried, cheapest, thresholds
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate, Escalation
from negawatt.tuning.judge import Judge, last_confidence
from negawatt.tuning.standby import chance_of_proof
from negawatt.tuning.study import Study
from negawatt.tuning.trial import QUALITY, Trial, difference_json
from negawatt.workload import QualityItem, TrafficItem
from negawatt.workload.items import answers_are_choices

WORTH = 0.97
"""A cascade that is foreseen to cost more than this share of the best single model is not tried."""
PRUDENCE = (1.0, 4.0)
"""Of the first cascade of a pair, and of the next one, after a proof of the first has failed."""

HOPELESS = 0.02
"""A small model with less than this chance to be proved by itself is not tried so."""

Items = Sequence[QualityItem | TrafficItem]


class Cascades:
    """Offers cascades to a study, as trials of it.

    Args:
        run: where notes go.
        judge: answers the questions, once, whoever asks.
        items: questions of the search that thresholds are chosen on.
        held_out: how many the proof will have.
        fewest: that a proof needs at least.
        limit: on the drop of quality; None where there is none, and then no cascade has a purpose.
        tick: told what goes on.
    """

    def __init__(
        self,
        run: Run,
        judge: Judge,
        items: Items,
        held_out: int,
        fewest: int,
        limit: float | None,
        tick: Callable[[str], None],
    ) -> None:
        self.run, self.judge, self.items = run, judge, items
        self.held_out, self.fewest, self.limit, self.tick = held_out, fewest, limit, tick
        self._offered: dict[tuple[Candidate, Candidate], int] = {}

    def offer(self, study: Study, time_left: Callable[[], float]) -> None:
        """Add the most promising cascade of what was tried so far, where it would be cheaper than the rest.

        What runs the small model best is tried for the large one too: a search drops large models at a
        first look, as too dear.
        """
        if self.limit is None or not answers_are_choices(self.items):
            return
        found: list[tuple[Threshold, Candidate, Candidate]] = []
        for small, large in self._pairs(study, time_left):
            turn = self._offered.get((small.candidate, large.candidate), 0)
            if turn >= len(PRUDENCE) or time_left() <= 0:
                continue
            try:
                chosen = self._threshold(small, large, turn)
            except (EngineError, WorkloadError) as exc:
                self.run.append("note", {"text": f"No cascade of {small.candidate}: {exc}"})
                continue
            if chosen is not None and 0 < chosen.passed < 1:
                found.append((chosen, small.candidate, large.candidate))
                self._strike(small, study)
        if not found:
            return
        chosen, first, second = min(found, key=lambda each: each[0].cost)
        rivals = [t.cost for t in study.trials if t.feasible and t.cost and t.candidate.model != first.model]
        if rivals and chosen.cost > WORTH * min(rivals):
            return
        self._offered[first, second] = self._offered.get((first, second), 0) + 1
        offered = replace(first, escalation=Escalation(chosen.margin, second))
        if all(t.candidate != offered for t in study.trials):
            figures = self._figures(offered, chosen)
            study.keep(Trial(len(study.trials), offered, "complete", chosen.cost, figures=figures))

    def _figures(self, offered: Candidate, chosen: Threshold) -> dict[str, Any]:
        """What is known of a cascade before it runs, from what its parts answered and cost."""
        difference = self.judge.compare(offered, self.items, self.tick, self.judge.confidence)
        known = self.judge.scores.known(offered, self.items)
        return {
            "cascade_foreseen": {"passed": chosen.passed, "drop": chosen.drop, "bound": chosen.bound},
            "screen_cost": chosen.cost,  # as if a look had shown it
            "quality": self.judge.summary(known) if known else None,
            "quality_drop": difference_json(difference),
        }

    def _pairs(self, study: Study, time_left: Callable[[], float]) -> Iterator[tuple[Trial, Trial]]:
        """Trials of two models, the cheaper first; of each model the cheapest that may answer so."""
        smalls = _cheapest_by_model(study.trials)
        for small in smalls:
            for name in [t.candidate.model for t in smalls if t.candidate.model != small.candidate.model]:
                self._like(small.candidate, name, study, time_left)
        larges = _cheapest_by_model([t for t in study.trials if QUALITY not in t.violations])
        for small in smalls:
            for large in larges:
                other = small.candidate.model != large.candidate.model
                if other and small.cost is not None and large.cost is not None and small.cost < large.cost:
                    yield small, large

    def _like(self, small: Candidate, model: str, study: Study, time_left: Callable[[], float]) -> None:
        """Try another model as the small one runs, where that was not tried and it is the dearer one."""
        wanted = replace(small, model=model)
        known = [t for t in study.trials if t.candidate.model == model and t.cost is not None]
        mine = [t.cost for t in study.trials if t.candidate == small and t.cost is not None]
        dearer = bool(known) and min(t.cost or 0.0 for t in known) > min(mine, default=0.0)
        if dearer and time_left() > 0 and all(t.candidate != wanted for t in study.trials):
            self.tick(f"for a cascade: {wanted}")
            study.keep(study.try_candidate(wanted, self.tick, screen=False))

    def _threshold(self, small: Trial, large: Trial, turn: int) -> Threshold | None:
        """The cheapest threshold that the held-out questions are expected to prove."""
        assert self.limit is not None and small.cost is not None and large.cost is not None
        scores = self.judge.scores
        ours = scores.quality(small.candidate, self.items, self.tick, margins=True)
        theirs = scores.quality(large.candidate, self.items, self.tick)
        tried = [Tried(ours.margins[i.id], ours.scores[i.id], theirs.scores[i.id]) for i in self.items]
        held = max(1, self.held_out)
        found = thresholds(tried, small.cost, large.cost, held, self._confidence, PRUDENCE[turn])
        return cheapest(found, self.limit - self._lost(large.candidate))

    def _strike(self, small: Trial, study: Study) -> None:
        """So many questions may show that the small model alone will not do, before a proof is spent."""
        difference = self.judge.compare(small.candidate, self.items, self.tick, self.judge.confidence)
        if self.limit is None or QUALITY in small.violations:
            return
        seen, held = difference_json(difference), max(1, self.held_out)
        chance = chance_of_proof(seen, held, self.limit, self._confidence)
        if -difference.high > self.limit or chance < HOPELESS:
            study.refute(small.candidate, f"quality drops: {difference.text}", {"quality_drop": seen})

    @property
    def _confidence(self) -> float:
        """Of the bound at the proof's last look."""
        return last_confidence(max(1, self.held_out), self.fewest, self.judge.confidence)

    def _lost(self, large: Candidate) -> float:
        """What the large model itself is seen to lose against the baseline."""
        if large.arithmetic == self.judge.baseline.arithmetic:
            return 0.0
        confidence = self.judge.confidence
        return max(0.0, self.judge.compare(large, self.items, self.tick, confidence).drop)


def _cheapest_by_model(trials: Sequence[Trial]) -> list[Trial]:
    """Of each model the trial that costs least; what was only looked at counts too.

    None is a cascade itself, nor holds the machine to limits, which two models would have to share.
    """
    found: dict[str, Trial] = {}
    for trial in sorted((t for t in trials if t.cost is not None), key=lambda t: t.cost or 0.0):
        single = trial.candidate.escalation is None and not trial.settings.limits
        if single and trial.state in ("complete", "pruned"):
            found.setdefault(trial.candidate.model, trial)
    return list(found.values())
