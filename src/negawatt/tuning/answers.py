"""`Answers`: quality scores of candidates, whatever weights they run, each answered once and kept."""

from __future__ import annotations

import math
from dataclasses import replace

from negawatt.profiling.quality import Quality
from negawatt.profiling.scores import Items, Scores, Tick
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Workload


class Answers:
    """`Scores` for candidates. What differs by limits alone answers the same, and is asked once.

    Args:
        workshop: gives their weights.
        workload: what is asked.
        baseline: whose answers are the reference where there are no labels.
        apart: as in `Scores`.
    """

    def __init__(self, workshop: Workshop, workload: Workload, baseline: Candidate, apart: str = "") -> None:
        self.workshop, self.workload, self.baseline = workshop, workload, baseline
        self.labelled, self._apart = workload.labelled, apart
        self._base = Scores(workshop.artifact(baseline), workload, baseline.settings, apart=apart)
        self._of: dict[tuple[str, tuple[str, ...]], Scores] = {baseline.making: self._base}

    def quality(
        self, candidate: Candidate, items: Items, tick: Tick = lambda text: None, *, margins: bool = False
    ) -> Quality:
        """Scores of the items; those not answered before are answered now.

        Of a cascade both models answer on their own what they have to, and the answers are put together.
        """
        self._make_room(candidate)
        if candidate.escalation is not None:
            return self._cascaded(candidate, items, tick)
        settings = candidate.settings.without_limits()
        return self._scores(candidate).quality(settings, items, tick, margins=margins)

    def _make_room(self, candidate: Candidate) -> None:
        """One candidate at a time, beside the reference; of a cascade both parts."""
        own = [self._base, *map(self._scores, candidate.parts)]
        for other in self._of.values():
            if other not in own:
                other.close()

    def _cascaded(self, candidate: Candidate, items: Items, tick: Tick) -> Quality:
        first, second = candidate.parts
        threshold = candidate.escalation.threshold if candidate.escalation else -math.inf
        ours = self._scores(first).quality(first.settings, items, tick, margins=True)
        unsure = [item for item in items if ours.margins[item.id] < threshold]
        if not unsure:
            return ours
        theirs = self._scores(second).quality(second.settings, unsure, tick)
        return replace(ours, scores={**ours.scores, **theirs.scores})

    def known(self, candidate: Candidate, items: Items) -> Quality | None:
        """Scores of those of the items that were answered already; None without any."""
        if candidate.escalation is not None:
            first, second = candidate.parts
            ours, theirs = self.known(first, items), self.known(second, items)
            if ours is None:
                return None
            passed = {i for i, lead in ours.margins.items() if lead < candidate.escalation.threshold}
            after = theirs.scores if theirs else {}
            scores = {i: after.get(i) if i in passed else s for i, s in ours.scores.items()}
            whole = {i: s for i, s in scores.items() if s is not None}
            return replace(ours, scores=whole) if whole else None
        return self._scores(candidate).known(candidate.settings.without_limits(), items)

    def teach(self, candidate: Candidate, quality: Quality) -> None:
        """Scores that a machine like this one gave to answers of a candidate."""
        self._scores(candidate).teach(candidate.settings.without_limits(), quality)

    def foreseen_s(self, candidate: Candidate, items: Items) -> float:
        """Seconds that the items would take at the pace seen so far; 0 where none was seen."""
        if candidate.escalation is not None:
            return sum(self.foreseen_s(each, items) for each in candidate.parts)
        return self._scores(candidate).foreseen_s(candidate.settings.without_limits(), items)

    @property
    def spent_cpu_s(self) -> float:
        """CPU seconds of all engines that answered."""
        return sum(each.spent_cpu_s for each in self._of.values())

    def close(self) -> None:
        """End the engines that are open."""
        for each in self._of.values():
            each.close()

    def _scores(self, candidate: Candidate) -> Scores:
        if candidate.making not in self._of:
            artifact = self.workshop.artifact(candidate)
            self._of[candidate.making] = Scores(
                artifact, self.workload, self.baseline.settings, origin=self._base, apart=self._apart
            )
        return self._of[candidate.making]
