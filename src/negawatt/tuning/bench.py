"""`Bench`: where one candidate is tried: loaded, looked at, measured, judged. The same on every machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from negawatt.engine import Engine
from negawatt.errors import EngineError, MissingDependency, NegawattError, WorkerDied, WorkloadError
from negawatt.profiling.window import warm_up
from negawatt.tuning.attempt import SCREEN_TOKENS, Look, first_look, measured
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.judge import Judge
from negawatt.tuning.limited import limited
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import QUALITY, Trial, difference_json
from negawatt.workload import QualityItem, TrafficItem

SCREEN_FACTOR = 1.3
"""A candidate whose first look costs more than this times the best one's is dropped."""

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What a candidate is tried on.

    Attributes:
        judge: of quality, with the workshop that weights come from.
        traffic: to measure on.
        items: quality items to judge on.
        held_out: how many items the proof will have.
        limit: on the drop of quality; None where there is none.
        reference_s: cost of the reference load that costs are relative to.
        cost: what is counted.
    """

    judge: Judge
    traffic: Traffic
    items: Sequence[QualityItem | TrafficItem]
    held_out: int
    limit: float | None
    reference_s: float
    cost: Cost = CPU_SECONDS

    def look(self, candidate: Candidate) -> Look | Trial:
        """A first look at one candidate, or the trial that failed."""
        started, engine = time.monotonic(), None
        try:
            jobs, per_token = self.traffic.jobs(candidate), self.traffic.per_token(candidate)
            engine = self.judge.workshop.engine(candidate)
            with engine:
                warm_up(engine, jobs[0])
                with limited(engine, jobs, candidate.settings.limits):
                    look = first_look(engine, jobs, self.reference_s, per_token, self.cost)
        except MissingDependency:
            raise
        except (EngineError, WorkloadError) as exc:
            return failed(candidate, exc, time.monotonic() - started, engine)
        return replace(look, lasted_s=time.monotonic() - started)

    def measure(
        self, candidate: Candidate, foreseen: float | None = None, earlier: Look | None = None
    ) -> Trial:
        """Load, look cheaply, and measure what is worth it; neither limits nor quality are looked at.

        Args:
            foreseen: what a first look would show of what the search expects to end with; None to measure in
                any case.
            earlier: a first look at this one, which is not repeated.
        """
        started, engine = time.monotonic(), None
        if earlier is not None and (reason := too_dear(earlier, foreseen)):
            return pruned(candidate, earlier, reason)
        try:
            jobs, per_token = self.traffic.jobs(candidate), self.traffic.per_token(candidate)
            engine = self.judge.workshop.engine(candidate)
            with engine:
                warm_up(engine, jobs[0])
                with limited(engine, jobs, candidate.settings.limits) as held:
                    look = earlier or first_look(engine, jobs, self.reference_s, per_token, self.cost)
                    if reason := too_dear(look, foreseen):
                        return pruned(candidate, replace(look, lasted_s=time.monotonic() - started), reason)
                    groups = 2 if candidate == self.judge.baseline else None
                    cost, figures = measured(
                        engine, jobs, self.reference_s, look, groups, per_token, self.cost
                    )
                figures["engine"] |= held
                if held:
                    del figures["reference_s"]  # slowed by the limits, it says nothing of the host
                peak, spent_cpu_s = engine.last_usage.peak_rss_bytes, engine.spent_cpu_s
        except MissingDependency:
            raise
        except (EngineError, WorkloadError) as exc:
            return failed(candidate, exc, time.monotonic() - started, engine)
        lasted_s = time.monotonic() - started
        if earlier is not None:
            lasted_s, spent_cpu_s = lasted_s + earlier.lasted_s, spent_cpu_s + earlier.spent_cpu_s
        figures |= {
            "screen_cost": look.cost, "peak_rss_bytes": peak, "read_bytes": list(look.read_bytes),
            "duration_s": lasted_s, "cpu_s_spent": spent_cpu_s,
        }  # fmt: skip
        if per_token != 1.0:
            figures["tokens_per_baseline_token"] = per_token
        return Trial(-1, candidate, "complete", cost, figures=figures)

    def judged(self, trial: Trial, tick: Tick) -> Trial:
        """The trial with what its quality is on the search's own items.

        Where it cannot be judged the trial has failed after all.

        Raises:
            EngineError, WorkloadError: it is the baseline that cannot be judged.
            MissingDependency: a library is not installed.
        """
        started, candidate = time.monotonic(), trial.candidate
        if not self.items:
            return trial
        before_s = self.judge.scores.spent_cpu_s
        try:
            if candidate == self.judge.baseline and self.judge.scores.labelled:
                quality = self.judge.scores.quality(candidate, self.items, tick)
                found = replace(trial, figures={**trial.figures, "quality": self.judge.summary(quality)})
            else:
                found = self._compared(trial, tick)
        except (EngineError, WorkloadError) as exc:
            if candidate == self.judge.baseline or isinstance(exc, MissingDependency):
                raise
            found = failed(candidate, exc, 0.0)
        took = {
            "duration_s": time.monotonic() - started,
            "cpu_s_spent": self.judge.scores.spent_cpu_s - before_s,
        }
        took = {name: more + float(trial.figures.get(name) or 0.0) for name, more in took.items()}
        return replace(found, figures={**found.figures, **took})

    def _compared(self, trial: Trial, tick: Tick) -> Trial:
        allowed = math.inf if self.limit is None else self.limit
        difference, reason = self.judge.screen(trial.candidate, self.items, allowed, self.held_out, tick)
        known = self.judge.scores.known(trial.candidate, self.items)
        figures = {
            **trial.figures,
            "quality": self.judge.summary(known) if known else None,
            "quality_drop": difference_json(difference),
        }
        return replace(trial, reason=reason, violations=(QUALITY,) if reason else (), figures=figures)


def too_dear(look: Look, foreseen: float | None) -> str:
    """Why a candidate of such a first look is not worth measuring, or nothing.

    Args:
        foreseen: what it would show of what the search expects to end with; None where that is not known.
    """
    if foreseen is None or look.cost <= SCREEN_FACTOR * foreseen:
        return ""
    ratio = look.cost / foreseen
    return f"by its first {SCREEN_TOKENS} tokens it costs {ratio:.2f} times what is expected to win"


def pruned(candidate: Candidate, look: Look, reason: str) -> Trial:
    """The trial of a candidate that was dropped after a first look."""
    figures = {
        "screen_cost": look.cost,
        "read_bytes": list(look.read_bytes),
        "peak_rss_bytes": look.peak_rss_bytes,
        "cpu_s_spent": look.spent_cpu_s,
        "duration_s": look.lasted_s,
    }
    return Trial(-1, candidate, "pruned", look.cost, reason, figures=figures)


def failed(
    candidate: Candidate, error: NegawattError, lasted_s: float, engine: Engine | None = None
) -> Trial:
    """The trial of a candidate whose engine, if it came to one, refused or died."""
    figures = {
        "died": isinstance(error, WorkerDied),
        "duration_s": lasted_s,
        "cpu_s_spent": 0.0 if engine is None else engine.spent_cpu_s,
    }
    return Trial(-1, candidate, "failed", None, str(error), figures=figures)
