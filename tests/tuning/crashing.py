"""A double of the study in which some processes die."""

from __future__ import annotations

from collections.abc import Callable

from negawatt.errors import WorkerDied
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, Study
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import failed
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.trial import Trial


class Crashing(Study):
    """Every look at a candidate of which `dies` is true ends with `last_words`; the others go well."""

    def __init__(
        self, run: Run, space: Space, baseline: Candidate, dies: Callable[[Candidate], bool], last_words: str
    ) -> None:
        super().__init__(run, space, Constraints(), None, baseline, None, [], 0, 0)  # type: ignore[arg-type]
        self.dies, self.last_words = dies, last_words

    def look(self, candidate: Candidate) -> Look | Trial:
        if self.dies(candidate):
            return failed(candidate, WorkerDied(self.last_words), 0.1)
        return Look(1.0, 1.0, 0, 1.0)

    def try_candidate(
        self, candidate: Candidate, tick: Callable[[str], None], *, screen: bool = True
    ) -> Trial:
        looked = self.look(candidate)
        if isinstance(looked, Trial):
            return looked
        return Trial(len(self.trials), candidate, "complete", 1.0 + 0.1 * len(self.trials))
