"""`Documents`: what a search found, as the JSON that other programs and the report read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from negawatt.profiling import Profile
from negawatt.profiling.scores import Items
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import Cost
from negawatt.tuning.judge import Judge
from negawatt.tuning.objectives import unbeaten
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import Trial, difference_json
from negawatt.workload import Difference

FINAL_FIGURES = (
    "energy_per_token", "cpu_s_per_token", "joules_per_token", "tokens_per_s", "ttft_ms", "tpot_ms",
    "peak_rss_bytes", "quality", "quality_drop", "ratio_to_baseline", "warnings",
)  # fmt: skip
"""Of a profile, in the record of its trial."""


class Documents:
    """Writes down profiles and trials.

    Args:
        run: where the figures of the proof are kept beside those of the search.
        judge: knows quality.
        traffic: of the search.
        held_items: quality is told on these.
        cost: what was counted.
    """

    def __init__(self, run: Run, judge: Judge, traffic: Traffic, held_items: Items, cost: Cost) -> None:
        self.run, self.judge, self.traffic, self.held_items, self.cost = run, judge, traffic, held_items, cost

    def of(self, candidate: Candidate, profile: Profile, quality: Difference | None) -> dict[str, Any]:
        """A profile as JSON, with what is known of its quality on the held-out items.

        Beside ``cpu_s_per_token`` stand the ``joules_per_token`` of the counters that the search goes by, if
        it goes by joules.
        """
        document = {**profile.to_json(), **candidate.to_json()}
        if self.cost.in_joules:
            windows = profile.summary.windows
            document["joules_per_token"] = self.cost.per_output(windows, candidate.devices)
        if (per_token := self.traffic.per_token(candidate)) != 1.0:
            document["tokens_per_baseline_token"] = per_token
        if quality is not None:
            document["quality_drop"] = difference_json(quality)
        known = self.judge.scores.known(candidate, self.held_items)
        if known is not None:
            document["quality"] = self.judge.summary(known)
        return document

    def keep(self, trials: Sequence[Trial], candidate: Candidate, document: dict[str, Any]) -> None:
        """The figures of the proof beside those of the search."""
        figures = {name: document[name] for name in FINAL_FIGURES if name in document}
        number = next((t.number for t in trials if t.candidate == candidate), 0)
        trial = Trial(number, candidate, "complete", None, figures=figures)
        self.run.append("trial", trial.to_record("final"))

    def frontier(self, trials: Sequence[Trial], objectives: Sequence[str]) -> list[dict[str, Any]]:
        """What no other trial beats.

        ``cost`` is what they were compared by (`Trial.cost`); ``cpu_s_per_token`` is as it was measured, on a
        host that may have been quicker then or slower.
        """
        return [
            {
                "artifact": self.judge.workshop.artifact(t.candidate).name,
                **t.candidate.to_json(),
                "trial": t.number,
                "cost": t.cost,
                **t.figures,
            }
            for t in unbeaten(trials, objectives)
        ]
