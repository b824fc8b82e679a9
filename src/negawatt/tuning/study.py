"""`Study`: the search. Propose, try cheaply, drop early, and keep every finished trial in the Run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from negawatt.errors import EngineError
from negawatt.meter import energy_of_cpu_time, fingerprint
from negawatt.profiling.reference_load import reference_load
from negawatt.run import Run
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import Bench, Tick
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.judge import Judge, last_confidence
from negawatt.tuning.memory import Memory
from negawatt.tuning.objectives import ENERGY, since_improvement
from negawatt.tuning.outlook import Outlook, Seen
from negawatt.tuning.portfolio import expected_cost
from negawatt.tuning.proposals import Proposals
from negawatt.tuning.sampler import Proposal
from negawatt.tuning.shortfall import says_nothing
from negawatt.tuning.space import Space
from negawatt.tuning.standby import chance_of_proof, faithful
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import QUALITY, Trial, kept_trials
from negawatt.tuning.verdict import Constraints
from negawatt.workload import QualityItem, TrafficItem

QUALITY_WITHIN = 1.15
"""Quality is judged only for candidates that cost at most this times what the search expects to end with."""
PATIENCE = 20
"""The search ends after so many trials in a row without an improvement of 1 %."""
UNJUDGED = {True: 0.9, False: 0.3}
"""Chance of a proof before quality was looked at: of 8 bits at least, and of what is coarser or changed."""
HOPELESS = 3.0
"""An engine whose best trial of a model costs more than this times any engine's is not tried for it again."""
DEATHS = 2
"""An engine whose worker died so often is not tried again."""


class Study:
    """Searches a space for the fewest joules per token, or CPU seconds where no counter tells joules.

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
        cost: what is counted.
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
        cost: Cost = CPU_SECONDS,
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
        limit = constraints.max_quality_drop
        self.bench = Bench(judge, traffic, items, held_out, limit, self.reference_s, cost)
        self.proposals = Proposals(
            space,
            strategy,
            seed,
            limit=limit if items else None,
            starts=space.starts(without=baseline.settings.engine),
            earlier=memory.observations(space, self.compared_with, self.reference_s, cost) if memory else [],
            objectives=objectives,
            chance=self.chance,
        )

    @property
    def compared_with(self) -> str:
        """What drops of quality are relative to: items and baseline."""
        return f"{self.judge.workload.hash} {self.baseline}"

    # -- the loop --------------------------------------------------------------------------------

    def search(self, time_left: Callable[[], float], tick: Tick) -> None:
        """Try candidates until the time is over, the space is exhausted, or nothing improves any more."""
        self.begin(time_left, tick)
        alone = len(self.trials) < 2  # on a busy machine the baseline may use up all the time: try one yet
        while alone or time_left() > 0:
            proposed = self.next()
            if proposed is None:
                return
            proposal, candidate = proposed
            tick(f"trial {len(self.trials)}: {candidate}")
            tried = self.try_candidate(candidate, tick) if proposal.whole else self.look(candidate)
            self.keep(tried, proposal)
            alone = False

    def begin(self, time_left: Callable[[], float], tick: Tick) -> None:
        """What goes before proposals: trials of earlier sittings, the baseline, what is known to be good.

        Raises:
            EngineError: the baseline does not run, or RunError: an earlier trial cannot be read.
        """
        self._take_over()
        self._time_left = time_left
        if not any(t.candidate == self.baseline for t in self.trials):
            tick("measuring what you run today")
            self.keep(self.try_candidate(self.baseline, tick, screen=False), None)
            if self.trials[-1].state == "failed":
                raise EngineError(f"what you run today does not run here: {self.trials[-1].reason}")
        for candidate in self.first:
            if candidate not in self._tried and time_left() > 0:
                tick(f"known from before: {candidate}")
                self.keep(self.try_candidate(candidate, tick, screen=False), None)

    def next(self) -> tuple[Proposal, Candidate] | None:
        """What to try next; None where nothing is left, or nothing has improved for long."""
        if not self._patient:
            return None
        return self.proposals.next(lambda c: self._tried.get(c) or self._reason_to_skip(c))

    def _take_over(self) -> None:
        """Trials of an earlier, interrupted session."""
        if self.trials:
            return  # it goes on after a refutation
        for stage, trial in kept_trials(self.run):
            if trial.candidate == self.baseline and trial.state == "failed":
                continue  # that ended the sitting; now it may run
            if stage == "search":
                self.trials.append(trial)
                seen = trial.figures
                self._learn(trial.candidate, seen.get("screen_cost"), seen.get("read_bytes"))
                if seen.get("died"):
                    self._deaths[trial.settings.runs_on] += 1
                self.proposals.tell(trial, None)
            elif stage == "proof":
                self._strike(trial.candidate, trial.reason)
            elif stage == "latency":
                self._slow(trial.candidate, trial.violations, trial.reason)

    def _reason_to_skip(self, candidate: Candidate) -> Trial | None:
        """The trial that speaks against trying a candidate.

        Its arithmetic lost too much quality already, or on its device its engine died twice or is hopeless.
        """
        if candidate.arithmetic in self._refuted:
            same = (t for t in self.trials if t.candidate.arithmetic == candidate.arithmetic)
            return min(same, key=lambda t: math.inf if t.cost is None else t.cost)
        engine = candidate.settings.runs_on
        own = [t for t in self.trials if t.settings.runs_on == engine]
        if self._deaths[engine] >= DEATHS:
            return own[-1]
        if not self.only_joules:
            return None
        # of the same model: what runs a small one cheaply may have run only a large one so far
        priced = [t for t in self.trials if t.candidate.model == candidate.model and t.cost is not None]
        best = min((t for t in priced if t.settings.runs_on == engine), key=_cost, default=None)
        overall = min((t for t in priced if t.feasible), key=_cost, default=None)
        if best is None or overall is None or _cost(best) < HOPELESS * _cost(overall):
            return self._no_prospect(candidate) if candidate.passes else None
        return best

    def _no_prospect(self, candidate: Candidate) -> Trial | None:
        """A trial that was only foretold, where passes cannot make up for what making takes."""
        looks = [(look.cost, _unjudged(c)) for c, look in self._looks.items() if c not in self._tried]
        least = expected_cost([*self._ways("screen_cost"), *looks])
        made = self.judge.workshop.is_made(candidate)
        required = {each.name for each in self.space.passes if each.required}
        found = self.outlook.against(
            candidate, least, self._time_left(), made=made, required=required >= set(candidate.names)
        )
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

    def keep(self, tried: Trial | Look, proposal: Proposal | None = None) -> None:
        """Take in what became of a candidate; a trial is in the run before anything else happens.

        Args:
            tried: by this machine or one like it; numbered here.
            proposal: that it came from, if any.
        """
        if isinstance(tried, Look):
            assert proposal is not None
            candidate = self.space.pick(lambda name, _: proposal.point[name])
            self._looks[candidate] = tried
            self._learn(candidate, tried.cost, tried.read_bytes)
            self.proposals.looked(proposal, tried.cost)
            return
        joules = energy_of_cpu_time(float(tried.figures.get("cpu_s_spent") or 0.0)).to_json()
        figures = {"machine": fingerprint()["id"], **tried.figures, "energy_spent": joules}
        trial = replace(tried, number=len(self.trials), figures=figures)
        self.trials.append(trial)
        self.run.append("trial", trial.to_record("search"))
        self._learn(trial.candidate, figures.get("screen_cost"), figures.get("read_bytes"))
        if figures.get("died"):
            self._died(trial)
        if QUALITY in trial.violations:
            self._strike(trial.candidate, trial.reason)
        self.proposals.tell(trial, proposal)

    def _died(self, trial: Trial) -> None:
        engine = trial.settings.runs_on
        self._deaths[engine] += 1
        if self._deaths[engine] == DEATHS:
            text = (
                f"{engine} is not tried any more: its process died {DEATHS} times, the last time so: "
                f"{trial.reason}"
            )
            self.run.append("note", {"text": text})

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

    def chance(self, trial: Trial) -> float:
        """Chance that a trial will be proved, going by what the search saw of it; 1 where nothing must be."""
        if trial.state == "failed" or trial.violations:
            return 0.0
        limit = self.constraints.max_quality_drop
        if trial.candidate == self.baseline or limit is None or not self.items:
            return 1.0
        seen, held = trial.figures.get("quality_drop"), max(1, self.held_out)
        if seen is None:
            return _unjudged(trial.candidate)
        return chance_of_proof(seen, held, limit, last_confidence(held, 0, self.judge.confidence))

    def _ways(self, figure: str = "") -> list[tuple[float, float]]:
        """Of each trial its cost, or a figure instead, and its chance."""
        costs = ((t.figures.get(figure) if figure else t.cost, t) for t in self.trials)
        return [(float(cost), self.chance(t)) for cost, t in costs if cost is not None]

    @property
    def _patient(self) -> bool:
        return since_improvement(self.trials[self._fresh_from :], self.objectives) < PATIENCE

    # -- one trial -------------------------------------------------------------------------------

    def look(self, candidate: Candidate) -> Look | Trial:
        """A first look at one candidate, or the trial that failed."""
        return self.bench.look(candidate)

    def _learn(self, candidate: Candidate, cost: float | None, read_bytes: Sequence[float] | None) -> None:
        if cost is not None and read_bytes is not None:
            self.outlook.learn(candidate, Seen(cost, *read_bytes))

    def try_candidate(self, candidate: Candidate, tick: Tick, *, screen: bool = True) -> Trial:
        """Try one candidate: load, look cheaply, measure, then judge quality if it is worth it."""
        foreseen = self.foreseen() if screen else None
        trial = self.bench.measure(candidate, foreseen, self._looks.get(candidate)).checked(self.constraints)
        return self._judged(trial, tick) if trial.feasible else trial

    def foreseen(self) -> float | None:
        """What a first look would show of what the search expects to end with, going by what looks showed of
        whole measurements so far: a look may have been a lucky one, and what is cheapest may not be proved.
        None without any, and where more than joules counts.
        """
        if not self.only_joules:
            return None
        whole = [t for t in self.trials if t.state == "complete" and t.cost is not None]
        if self.best is None or not whole:
            return None
        shown: float = median(t.figures["screen_cost"] / _cost(t) for t in whole)
        return expected_cost(self._ways()) * shown

    def look_at(self, candidate: Candidate) -> Look | None:
        """The first look at a candidate, if it had one."""
        return self._looks.get(candidate)

    def worth_judging(self, trial: Trial) -> bool:
        """Whether it could still win: quality is judged only then, and the baseline's always."""
        best = self.best
        rival = (
            self.only_joules
            and best is not None
            and best.candidate != self.baseline
            and _cost(trial) > QUALITY_WITHIN * expected_cost(self._ways())
        )
        return trial.feasible and (trial.candidate == self.baseline or not rival)

    def _judged(self, trial: Trial, tick: Tick) -> Trial:
        """Quality on the search's own items, where the candidate could still win."""
        if not self.worth_judging(trial):
            return trial
        judged = self.bench.judged(trial, tick)
        if trial.candidate == self.baseline and self.items and self.judge.scores.labelled:
            known = self.judge.scores.known(self.baseline, self.items)
            if known is not None and (text := says_nothing(known)):
                self.run.append("note", {"text": text})
        return judged


def _unjudged(candidate: Candidate) -> float:
    return UNJUDGED[faithful(candidate)]


def _cost(trial: Trial) -> float:
    assert trial.cost is not None
    return trial.cost
