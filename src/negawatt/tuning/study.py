"""`Study`: the search. Propose, try cheaply, drop early, and keep every finished trial in the Run."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from negawatt.errors import EngineError, MissingDependency, NegawattError, WorkerDied, WorkloadError
from negawatt.meter import energy_of_cpu_time
from negawatt.profiling.reference_load import reference_load
from negawatt.profiling.window import warm_up
from negawatt.run import Run
from negawatt.tuning.attempt import SCREEN_TOKENS, Look, first_look, measured, spent
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.judge import Judge
from negawatt.tuning.memory import Memory
from negawatt.tuning.objectives import ENERGY, since_improvement
from negawatt.tuning.outlook import Outlook, Seen
from negawatt.tuning.proposals import Proposals
from negawatt.tuning.sampler import Proposal
from negawatt.tuning.shortfall import says_nothing
from negawatt.tuning.space import Space
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import QUALITY, Trial, difference_json
from negawatt.tuning.verdict import Constraints
from negawatt.workload import QualityItem, TrafficItem

SCREEN_FACTOR = 1.3
"""A candidate whose first look costs more than this times the best one's is dropped."""
QUALITY_WITHIN = 1.15
"""Quality is judged only for candidates that cost at most this times the best one."""
PATIENCE = 20
"""The search ends after so many trials in a row without an improvement of 1 %."""
HOPELESS = 3.0
"""An engine whose best trial costs more than this times the best of all is not tried again."""
DEATHS = 2
"""An engine whose worker died so often is not tried again."""

Tick = Callable[[str], None]


class Study:
    """Searches a space for the fewest CPU seconds, and so joules, per token.

    Args:
        run: an open tune run; finished trials in it are taken over.
        space: what may be tried.
        constraints: what a candidate must keep.
        judge: of quality.
        baseline: what everything is compared with.
        traffic: to search with.
        items: quality items to search with; those for the proof are not among them.
        held_out: how many items the proof will have.
        seed: of the strategy.
        strategy: name of what decides which candidate is next.
        memory: what earlier searches saw on this machine, for the default strategy.
        outlook: what foretells the saving of passes; without one they are all tried.
        objectives: what is wanted little of; where that is more than joules, joules drop nothing.
    """

    def __init__(
        self,
        run: Run,
        space: Space,
        constraints: Constraints,
        judge: Judge,
        baseline: Candidate,
        traffic: Traffic,
        items: Sequence[QualityItem | TrafficItem],
        held_out: int,
        seed: int,
        strategy: str = "default",
        memory: Memory | None = None,
        outlook: Outlook | None = None,
        objectives: tuple[str, ...] = (ENERGY,),
    ) -> None:
        self.run, self.space, self.constraints, self.judge = run, space, constraints, judge
        self.baseline, self.traffic, self.items, self.held_out = baseline, traffic, items, held_out
        self.trials: list[Trial] = []
        self.objectives, self.only_joules = objectives, objectives == (ENERGY,)
        self._deaths: Counter[str] = Counter()
        self._refuted: dict[tuple[str, ...], str] = {}  # arithmetic -> why its quality will not do
        self._looks: dict[Candidate, Look] = {}
        self.first: tuple[Candidate, ...] = ()  # known to be good from elsewhere: tried before all others
        self.outlook = outlook or Outlook({})
        self.not_tried: dict[str, str] = {}  # passes -> why they were left out
        self._time_left: Callable[[], float] = lambda: math.inf
        self._fresh_from = 0  # trials before this one do not count against the search's patience
        self.reference_s = float(run.manifest.get("reference_load_s") or 0.0)
        if not self.reference_s:
            self.reference_s = median(reference_load() for _ in range(7))
            run.update(reference_load_s=self.reference_s)
        self.proposals = Proposals(
            space,
            strategy,
            seed,
            limit=constraints.max_quality_drop if items else None,
            starts=space.starts(without=baseline.settings.engine),
            earlier=memory.observations(space, self.compared_with, self.reference_s) if memory else [],
            objectives=objectives,
        )

    @property
    def compared_with(self) -> str:
        """What drops of quality are relative to: items and baseline."""
        return f"{self.judge.workload.hash} {self.baseline}"

    # -- the loop --------------------------------------------------------------------------------

    def search(self, time_left: Callable[[], float], tick: Tick) -> None:
        """Try candidates until the time is over, the space is exhausted, or nothing improves any more."""
        self._take_over()
        self._time_left = time_left
        if not any(t.candidate == self.baseline for t in self.trials):
            tick("measuring what you run today")
            self.keep(self.try_candidate(self.baseline, tick, screen=False))
        for candidate in self.first:
            if candidate not in self._tried and time_left() > 0:
                tick(f"known from before: {candidate}")
                self.keep(self.try_candidate(candidate, tick, screen=False))
        alone = len(self.trials) < 2  # on a busy machine the baseline may use up all the time: try one yet
        while (alone or time_left() > 0) and self._patient:
            proposed = self.proposals.next(lambda c: self._tried.get(c) or self._reason_to_skip(c))
            if proposed is None:
                return
            proposal, candidate = proposed
            tick(f"trial {len(self.trials)}: {candidate}")
            tried = self.try_candidate(candidate, tick) if proposal.whole else self.look(candidate)
            if isinstance(tried, Look):
                self._looks[candidate] = tried
                self.proposals.looked(proposal, tried.cost)
            else:
                self.keep(tried, proposal)
            alone = False

    def _take_over(self) -> None:
        """Trials of an earlier, interrupted session."""
        if self.trials:
            return  # it goes on after a refutation
        for record in self.run.records("trial"):
            trial = Trial.from_record(record)
            if record.get("stage") == "search":
                self.trials.append(trial)
                self._learn(
                    trial.candidate, trial.figures.get("screen_cost"), trial.figures.get("read_bytes")
                )
                if trial.figures.get("died"):
                    self._deaths[trial.settings.engine] += 1
                self.proposals.tell(trial, None)
            elif record.get("stage") == "proof":
                self._strike(trial.candidate, trial.reason)
            elif record.get("stage") == "latency":
                self._slow(trial.candidate, trial.violations, trial.reason)

    def _reason_to_skip(self, candidate: Candidate) -> Trial | None:
        """The trial that speaks against trying a candidate.

        Its arithmetic lost too much quality already, or its engine has died twice or is hopeless.
        """
        if candidate.arithmetic in self._refuted:
            same = (t for t in self.trials if t.candidate.arithmetic == candidate.arithmetic)
            return min(same, key=lambda t: math.inf if t.cost is None else t.cost)
        engine = candidate.settings.engine
        own = [t for t in self.trials if t.settings.engine == engine]
        if self._deaths[engine] >= DEATHS:
            return own[-1]
        if not self.only_joules:
            return None
        best = min((t for t in own if t.cost is not None), key=_cost, default=None)
        overall = self.best
        if best is None or overall is None or _cost(best) < HOPELESS * _cost(overall):
            return self._no_prospect(candidate) if candidate.passes else None
        return best

    def _no_prospect(self, candidate: Candidate) -> Trial | None:
        """A trial that was only foretold, where passes cannot make up for what making takes."""
        least = min(
            (t.figures.get("screen_cost", math.inf) for t in self.trials if t.feasible), default=math.inf
        )
        least = min([least, *(look.cost for c, look in self._looks.items() if c not in self._tried)])
        made = self.judge.workshop.is_made(candidate)
        found = self.outlook.against(candidate, least, self._time_left(), made=made)
        if found is None:
            return None
        names = f"{' + '.join(candidate.names)} on {candidate.settings.engine}"
        if names not in self.not_tried:
            self.not_tried[names] = found.why
            self.run.append("note", {"text": f"Left out: {names}: {found.why}"})
        state = "pruned" if found.cost is not None else "failed"
        return Trial(-1, candidate, state, found.cost, found.why)

    @property
    def _tried(self) -> dict[Candidate, Trial]:
        return {trial.candidate: trial for trial in self.trials}

    def keep(self, trial: Trial, proposal: Proposal | None = None) -> None:
        """Count a trial as finished, in the run and for what decides which is next."""
        joules = energy_of_cpu_time(float(trial.figures.get("cpu_s_spent") or 0.0)).to_json()
        trial = replace(trial, figures={**trial.figures, "energy_spent": joules})
        self.trials.append(trial)
        self.run.append("trial", trial.to_record("search"))
        if QUALITY in trial.violations:
            self._strike(trial.candidate, trial.reason)
        self.proposals.tell(trial, proposal)

    def refute(self, candidate: Candidate, reason: str, figures: Mapping[str, Any]) -> None:
        """Take note that held-out items speak against the quality of `candidate` and its like.

        The search can then go on: what was second best so far becomes what is to be beaten.

        Args:
            candidate: of a trial.
            reason: why its quality will not do.
            figures: what was seen, for the record.
        """
        self._strike(candidate, reason)
        struck = replace(self._tried[candidate], figures=figures)
        self.run.append("trial", struck.to_record("proof"))
        self._fresh_from = len(self.trials)
        for trial in self.trials:
            if trial.candidate.arithmetic == candidate.arithmetic:
                self.proposals.tell(trial, None)

    def too_slow(self, candidate: Candidate, limits: Sequence[str], reason: str) -> None:
        """Take note that fresh requests speak against the latency of `candidate`.

        Args:
            limits: names of the constraints that it breaks.
            reason: what was seen.
        """
        self._slow(candidate, limits, reason)
        struck = replace(self._tried[candidate], reason=reason)
        self.run.append("trial", struck.to_record("latency"))
        self._fresh_from = len(self.trials)
        self.proposals.tell(struck, None)

    def _slow(self, candidate: Candidate, limits: Sequence[str], reason: str) -> None:
        self.trials = [
            replace(t, violations=tuple(dict.fromkeys((*t.violations, *limits))), reason=reason)
            if t.candidate == candidate
            else t
            for t in self.trials
        ]

    def drop(self, candidate: Candidate, reason: str) -> None:
        """Count a trial as failed after all."""
        self.trials = [
            replace(t, state="failed", cost=None, reason=reason) if t.candidate == candidate else t
            for t in self.trials
        ]

    def _strike(self, candidate: Candidate, reason: str) -> None:
        """Every trial of the same arithmetic breaks the limit on quality."""
        self._refuted[candidate.arithmetic] = reason
        for i, trial in enumerate(self.trials):
            same = trial.candidate.arithmetic == candidate.arithmetic
            if same and trial.candidate != self.baseline and QUALITY not in trial.violations:
                violations = (*trial.violations, QUALITY)
                self.trials[i] = replace(trial, violations=violations, reason=trial.reason or reason)

    @property
    def best(self) -> Trial | None:
        """The cheapest trial that keeps the constraints as far as they were judged."""
        return min((t for t in self.trials if t.feasible), key=_cost, default=None)

    @property
    def _patient(self) -> bool:
        return since_improvement(self.trials[self._fresh_from :], self.objectives) < PATIENCE

    # -- one trial -------------------------------------------------------------------------------

    def look(self, candidate: Candidate) -> Look | Trial:
        """A first look at one candidate, or the trial that failed."""
        started = time.monotonic()
        try:
            jobs, per_token = self.traffic.jobs(candidate), self.traffic.per_token(candidate)
            with self.judge.workshop.engine(candidate) as engine:
                warm_up(engine, jobs[0])
                look = first_look(engine, jobs, self.reference_s, per_token)
        except MissingDependency:
            raise
        except EngineError as exc:
            return self._failed(candidate, exc, time.monotonic() - started)
        self._learn(candidate, look.cost, look.read_bytes)
        return replace(look, lasted_s=time.monotonic() - started)

    def _learn(self, candidate: Candidate, cost: float | None, read_bytes: Sequence[float] | None) -> None:
        if cost is not None and read_bytes is not None:
            self.outlook.learn(candidate, Seen(cost, *read_bytes))

    def try_candidate(self, candidate: Candidate, tick: Tick, *, screen: bool = True) -> Trial:
        """Try one candidate: load, look cheaply, measure, then judge quality if it is worth it."""
        started, earlier = time.monotonic(), self._looks.get(candidate)
        screen = screen and self.only_joules
        if screen and earlier is not None and (reason := self._too_dear(earlier)):
            return self._pruned(candidate, earlier, reason)
        try:
            jobs, per_token = self.traffic.jobs(candidate), self.traffic.per_token(candidate)
            with self.judge.workshop.engine(candidate) as engine:
                warm_up(engine, jobs[0])
                look = earlier or first_look(engine, jobs, self.reference_s, per_token)
                self._learn(candidate, look.cost, look.read_bytes)
                if screen and (reason := self._too_dear(look)):
                    return self._pruned(candidate, replace(look, lasted_s=time.monotonic() - started), reason)
                groups = 2 if candidate == self.baseline else None
                cost, figures = measured(engine, jobs, self.reference_s, look, groups, per_token)
                peak, spent_cpu_s = engine.last_usage.peak_rss_bytes, spent(engine)
        except MissingDependency:
            raise
        except EngineError as exc:
            return self._failed(candidate, exc, time.monotonic() - started)
        figures |= {"screen_cost": look.cost, "peak_rss_bytes": peak, "read_bytes": list(look.read_bytes)}
        if per_token != 1.0:
            figures["tokens_per_baseline_token"] = per_token
        trial = Trial(len(self.trials), candidate, "complete", cost, figures=figures).checked(
            self.constraints
        )
        try:
            trial = self._judged(trial, tick) if trial.feasible else trial
        except (EngineError, WorkloadError) as exc:
            if candidate == self.baseline or isinstance(exc, MissingDependency):
                raise
            return self._failed(candidate, exc, time.monotonic() - started)
        lasted_s = time.monotonic() - started
        if earlier is not None:
            lasted_s, spent_cpu_s = lasted_s + earlier.lasted_s, spent_cpu_s + earlier.spent_cpu_s
        return replace(trial, figures={**trial.figures, "duration_s": lasted_s, "cpu_s_spent": spent_cpu_s})

    def _pruned(self, candidate: Candidate, look: Look, reason: str) -> Trial:
        figures = {
            "screen_cost": look.cost,
            "read_bytes": list(look.read_bytes),
            "peak_rss_bytes": look.peak_rss_bytes,
            "cpu_s_spent": look.spent_cpu_s,
            "duration_s": look.lasted_s,
        }
        return Trial(len(self.trials), candidate, "pruned", look.cost, reason, figures=figures)

    def _failed(self, candidate: Candidate, error: NegawattError, lasted_s: float) -> Trial:
        died = isinstance(error, WorkerDied)
        engine = candidate.settings.engine
        self._deaths[engine] += died
        if died and self._deaths[engine] == DEATHS:
            text = (
                f"{engine} is not tried any more: its process died {DEATHS} times, the last time so: {error}"
            )
            self.run.append("note", {"text": text})
        figures = {"died": died, "duration_s": lasted_s, "cpu_s_spent": 0.0}
        return Trial(len(self.trials), candidate, "failed", None, str(error), figures=figures)

    def _too_dear(self, look: Look) -> str:
        """Why a candidate of such a first look is not worth measuring, or nothing.

        It is compared with what a first look at the best would show, going by what looks showed of whole
        measurements so far: the look at the best itself may have been a lucky one.
        """
        whole = [t for t in self.trials if t.state == "complete" and t.cost is not None]
        if (best := self.best) is None or not whole:
            return ""
        foreseen = _cost(best) * median(t.figures["screen_cost"] / _cost(t) for t in whole)
        if look.cost <= SCREEN_FACTOR * foreseen:
            return ""
        return f"its first {SCREEN_TOKENS} tokens cost {look.cost / foreseen:.2f} times the best candidate's"

    def _judged(self, trial: Trial, tick: Tick) -> Trial:
        """Quality on the search's own items, where the candidate could still win."""
        limit, best = self.constraints.max_quality_drop, self.best
        if trial.candidate == self.baseline and self.items and self.judge.scores.labelled:
            quality = self.judge.scores.quality(trial.candidate, self.items, tick)
            if text := says_nothing(quality):
                self.run.append("note", {"text": text})
            return replace(trial, figures={**trial.figures, "quality": self.judge.summary(quality)})
        rival = (
            self.only_joules
            and best is not None
            and best.candidate != self.baseline
            and _cost(trial) > QUALITY_WITHIN * _cost(best)
        )
        if not self.items or rival:
            return trial
        allowed = math.inf if limit is None else limit
        difference, reason = self.judge.screen(trial.candidate, self.items, allowed, self.held_out, tick)
        known = self.judge.scores.known(trial.candidate, self.items)
        figures = {
            **trial.figures,
            "quality": self.judge.summary(known) if known else None,
            "quality_drop": difference_json(difference),
        }
        violations = (QUALITY,) if reason else ()
        return replace(trial, reason=reason, violations=violations, figures=figures)


def _cost(trial: Trial) -> float:
    assert trial.cost is not None
    return trial.cost
