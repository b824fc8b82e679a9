"""`tune`: from a model and a workload to a verdict: search, finalists in pairs, proof, artifact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.engine.backends import backend
from negawatt.errors import EngineError, NegawattError, UsageError
from negawatt.meter import Meter, fingerprint
from negawatt.profiling import REFERENCE_SETTINGS
from negawatt.profiling.profiler import Progress, ratio_json
from negawatt.run import Run
from negawatt.tuning.ablation import levers, path
from negawatt.tuning.accounts import accounts
from negawatt.tuning.budget import Budget
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cascade import Cascades
from negawatt.tuning.cluster import Cluster
from negawatt.tuning.cost import Cost
from negawatt.tuning.crew import crew_for
from negawatt.tuning.documents import Documents
from negawatt.tuning.expense import Expense
from negawatt.tuning.finals import FEWEST_FINAL_ROUNDS, Finals, waterfall
from negawatt.tuning.judge import Judge
from negawatt.tuning.limited import limits_json, with_limits
from negawatt.tuning.material import Material
from negawatt.tuning.memory import Memory
from negawatt.tuning.models import named, refuse_incomparable, refuse_longer, space_of
from negawatt.tuning.objectives import check_objectives
from negawatt.tuning.observed import Observed, present_text
from negawatt.tuning.outlook import Outlook
from negawatt.tuning.placements import Placements
from negawatt.tuning.prospect import prospects
from negawatt.tuning.prover import Proved, Prover
from negawatt.tuning.question import Question, cost_of, open_run
from negawatt.tuning.space import Space
from negawatt.tuning.strategy import check_strategy
from negawatt.tuning.study import Study
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.verdict import Constraints, verdict
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Workload

SEARCH_SHARE_OF_TIME = 0.45
"""The rest of the time is for the finalists: measuring them in pairs and proving their quality."""
AGAIN_SHARE_OF_TIME = 0.4
"""Of the time left when no finalist's quality could be proved: for searching on without their like."""
RANKING_SHARE_OF_TIME = 0.08
"""For measuring the finalists in turn."""
FINALS_SHARE_OF_TIME = 0.12
"""Kept free of the time for measuring the winner and the baseline in turn."""
FINAL_WINDOWS = FEWEST_FINAL_ROUNDS + 1
"""Of the baseline: kept free for the same, where a share of a short time would not do."""


def tune(
    artifact: Artifact | str,
    workload: Workload | str = "chat-piqa",
    *,
    constraints: Constraints | None = None,
    space: Space | None = None,
    baseline: Settings = REFERENCE_SETTINGS,
    models: Sequence[Artifact | str] = (),
    time_budget_s: float = 360.0,
    energy_budget_j: float | None = None,
    tokens_per_day: float | None = None,
    observed: Observed | None = None,
    fewest_items: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    strategy: str = "default",
    objectives: Sequence[str] = (),
    path: Path | None = None,
    store: str | None = None,
    ray: str | None = None,
    command: Sequence[str] = (),
    progress: Progress = lambda done, total, text: None,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Find the way of running a model that spends the fewest joules per token, and prove it.

    Args:
        artifact: a model, or what `Artifact.open` takes.
        workload: what it is asked, or what `Workload.open` takes.
        constraints: what the answer must keep.
        space: what may be tried; by default everything installed here, at batch 1. Power caps and clocks only
            where joules are counted, see `negawatt.tuning.cost` and `negawatt.tuning.limited`.
        baseline: what is run today; the reference for quality and for the saving.
        models: further models to consider; their quality is compared with the baseline's of `artifact`.
        time_budget_s: for all of it; a resumed search gets what is left.
        energy_budget_j: joules for all of it likewise; None for as many as the time takes.
        tokens_per_day: that are generated in use, to tell the payback in days.
        observed: what was seen in use: its requests' lengths shape the traffic, the best candidates known
            there are tried first, and the verdict says whether the present choice is still the best.
        fewest_items: quality items that a proof needs at least.
        confidence: of the bound on the quality drop.
        seed: of the search.
        strategy: what decides which candidate is next; a name of `negawatt.tuning.strategy.STRATEGIES`.
        objectives: names of `negawatt.tuning.objectives.OBJECTIVES` to search a frontier over beside joules;
            the verdict is on the fewest joules all the same.
        command: what the user typed, kept in the run for who wants to repeat it.
        path: the run folder. An unfinished run of the same question there is continued.
        store: URL of a database (``postgresql://…``) that the run is kept in besides, under the name of its
            folder: every finished trial is committed there, and any folder of that name goes on with it.
        ray: address of a Ray cluster whose nodes try the candidates: ``auto``, ``HOST:PORT`` or
            ``ray://HOST:PORT``. The verdict is for machines like this one; other nodes only judge quality.
        progress: called with (seconds used, seconds in all, what is being done).
        told: called with each sentence that is to be known before the search begins: what the items at hand
            can prove, and what is left out.

    Returns:
        The ``tune`` document of the command line, as it also stands in the run's ``result.json``.

    Raises:
        UsageError: the workload has no traffic, or too little to divide; or limits are named that cannot be
            tried here.
        Infeasible: the items at hand could not prove the limit on quality of any candidate.
        WorkloadError: one of its questions is longer than `space.max_context`.
        EngineError: the baseline does not run, so nothing could be compared with it.
        RunError: the folder holds something else, or another question's run, or one that went by joules of
            counters which cannot be read any more.
    """
    check_strategy(strategy)
    if not 0 <= seed < 2**32:
        raise UsageError(f"the seed must be a whole number from 0 to {2**32 - 1:,}, not {seed}")
    backend(baseline.engine).check(baseline)
    artifact = Artifact.open(artifact) if isinstance(artifact, str) else artifact
    workload = Workload.open(workload) if isinstance(workload, str) else workload
    constraints = constraints or Constraints()
    space = space or Space.default()
    placements = Placements.here(space, baseline.device, cluster=ray is not None)
    here, note = placements.cost, ""
    cost = cost_of(path, here)
    if observed is not None:
        if observed.model_sha256 not in ("", artifact.sha256):
            raise UsageError(f"{observed.origin} is of another model than {artifact.name}")
        observed = observed.within(space.max_context, cost)
        workload, note = observed.shaped(workload, artifact.tokenizer)
        tokens_per_day = tokens_per_day or observed.tokens_per_day
    others = named(artifact, models)
    space = replace(space, models=("", *others)) if others else space
    space = space_of((artifact, *others.values()), workload, space, cluster=ray is not None)
    space = placements.within(space, (artifact, *others.values()))
    material = Material.of(workload, space, seed, observed.starts if observed else ())
    foretold = prospects(material, workload, constraints, fewest_items, confidence)
    refuse_incomparable(artifact, others, workload, space)
    refuse_longer((artifact, *others.values()), workload, space)
    if tokens_per_day is not None and not 0 < tokens_per_day < math.inf:
        raise UsageError(f"tokens per day must be a number above 0, not {tokens_per_day}")
    budget = Budget(time_budget_s, energy_budget_j)
    shas = {name: each.sha256 for name, each in others.items()}
    question = Question(
        artifact.sha256, workload.hash, Candidate(baseline), constraints, space, seed, shas, strategy,
        check_objectives(objectives),
    )  # fmt: skip
    limited = with_limits(space, cost)  # what cannot be tried is refused before anything is made
    with (
        Cluster(ray) if ray else nullcontext() as cluster,
        open_run(path, question, artifact, workload, command, store, here) as run,
    ):
        cost = Cost.from_json(run.manifest.get("cost"))
        cost.refuse_elsewhere(here)
        limited = with_limits(space, cost, run.manifest.get("limits"))
        run.update(limits=limits_json(limited))
        question = replace(question, space=limited)
        session = _Session(
            run, artifact, others, workload, material, question, budget, observed, fewest_items, confidence,
            progress, cluster, cost, told,
        )  # fmt: skip
        for text in filter(None, (*foretold, note, placements.note)):
            session.note(text)
        return session.go(tokens_per_day)


class _Session:
    """One sitting of a search: what `tune` does, step by step."""

    def __init__(
        self,
        run: Run,
        artifact: Artifact,
        others: Mapping[str, Artifact],
        workload: Workload,
        material: Material,
        question: Question,
        budget: Budget,
        observed: Observed | None,
        fewest_items: int,
        confidence: float,
        progress: Progress,
        cluster: Cluster | None,
        cost: Cost,
        told: Callable[[str], None],
    ) -> None:
        self.told = told
        self._meter: Meter | None = None  # while the search is going on
        self.cluster, self.expense, self.cost = cluster, Expense(run, self.used_s), cost
        self.run, self.question, self.budget, self.material = run, question, budget, material
        self.constraints, self.baseline = question.constraints, question.baseline
        self.fewest_items, self.progress, self.observed = fewest_items, progress, observed
        self.search_items, self.held_items = material.search_items, material.held_items
        self.workshop = Workshop(
            artifact, others, usage=material.usage, seed=question.seed, tick=self.tick,
            told=lambda making: run.append("making", making.to_record()),
        )  # fmt: skip
        budget.earlier_s = self.expense.earlier_s
        budget.earlier_j = self.expense.earlier_energy.value_j or 0.0
        budget.elsewhere_j = lambda: self.expense.energy.value_j or 0.0
        most = question.space.max_context
        self.searched = Traffic(self.workshop, material.searched, most)
        self.held = Traffic(self.workshop, material.held, most)
        self.memory = Memory(question.artifact, fingerprint()["id"])
        self.judge = Judge(self.workshop, workload, question.baseline, confidence)
        self.finals = Finals(run, self.workshop, self.held, self.tick, cost)
        self.documents = Documents(run, self.judge, self.searched, self.held_items, cost)
        self.prover = Prover(
            run, self.judge, self.finals, self.constraints, self.held_items, [self.held, self.searched],
            fewest_items, self.tick, self.left_before_finals_s,
        )  # fmt: skip
        self.cascades = Cascades(
            run, self.judge, material.threshold_items, len(self.held_items), fewest_items,
            self.constraints.max_quality_drop, self.tick,
        )  # fmt: skip

    def used_s(self) -> float:
        return self.budget.used_s()

    def left_s(self, share: float = 1.0) -> float:
        return self.budget.left_s(share)

    def left_before_finals_s(self) -> float:
        """Seconds that may be used before the last comparison, which takes some whatever the budget."""
        return min(self.left_s(1 - FINALS_SHARE_OF_TIME), self.left_s() - FINAL_WINDOWS * self._window_s)

    @cached_property
    def _window_s(self) -> float:
        """How long a window of the baseline took in the search, which is over when this is asked."""
        return next((float(r.get("window_s") or 0.0) for r in self.run.records("trial")), 0.0)

    def tick(self, text: str) -> None:
        if self._meter is not None:
            self.expense.keep(self._meter)
        whole_s = self.budget.whole_s
        self.progress(min(self.used_s(), whole_s), whole_s, text)

    # -- the steps -------------------------------------------------------------------------------

    def go(self, tokens_per_day: float | None) -> dict[str, Any]:
        own_s = time.process_time()
        with Meter() as meter:
            self.budget.begin(meter)
            self._meter = meter
            outlook = Outlook(self.workshop.shapes)
            search_s = SEARCH_SHARE_OF_TIME * self.budget.whole_s
            far = outlook.out_of_reach(self.question.space, search_s, self.workshop)
            study = Study(
                self.run, self.question.space.without(far), self.constraints, self.judge, self.baseline,
                self.searched, self.search_items, len(self.held_items), self.question.seed,
                self.question.strategy, self.memory, outlook, self.question.objectives, self.cost,
            )  # fmt: skip
            try:
                for name, why in far.items():
                    self.note(f"Left out: {name}: {why}")
                study.first = self.observed.starts if self.observed else ()
                if self.cluster is not None:
                    crew = crew_for(self.cluster, study, self.material, self.question.seed, self.expense)
                    self.search = crew.search
                else:
                    self.search = study.search
                self.search(lambda: self.left_s(SEARCH_SHARE_OF_TIME), self.tick)
                result = self._decide(study)
            finally:
                self._meter = None
                self.judge.scores.close()
        own_s, spent_s = time.process_time() - own_s, meter.measurement.cpu_s + self.expense.cpu_s
        result["search"] = accounts(
            study.trials, list(self.run.records("making")),
            meter.measurement.energy + self.expense.energy + self.expense.earlier_energy, result=result,
            cpu_s=spent_s + self.expense.earlier_cpu_s, duration_s=self.used_s(),
            own_share=(own_s + self.expense.own_cpu_s) / max(spent_s, 1e-9), tokens_per_day=tokens_per_day,
            cost=self.cost,
        )  # fmt: skip
        result["search"] |= {
            "strategy": self.question.strategy,
            "objectives": list(self.question.objectives),
            "prediction": study.proposals.trust(),
            "ended": study.proposals.ended or None,
            "machines": self.expense.by_machine(),
        }
        left_out = {**far, **study.not_tried}
        result["search"]["left_out"] = [{"passes": k, "reason": v} for k, v in left_out.items()]
        self.run.finish(result)
        with suppress(NegawattError):  # it helps the next search; this one's result stands without it
            self.memory.keep(
                study.trials, str(self.run.path), study.compared_with, study.reference_s, self.cost
            )
        return result

    def note(self, text: str) -> None:
        """Tell a sentence, and keep it in the run, once however often the search is taken up again."""
        if not any(r.get("text") == text for r in self.run.records("note")):
            self.run.append("note", {"text": text})
        self.told(text)

    def _decide(self, study: Study) -> dict[str, Any]:
        """From the trials to the verdict."""

        def rank(finalists: Sequence[Candidate]) -> list[Candidate]:
            until_s = self.used_s() + RANKING_SHARE_OF_TIME * self.budget.whole_s
            return self.finals.ranked(finalists, lambda: until_s - self.used_s())

        def search_on() -> None:
            pause_s = self.used_s() + AGAIN_SHARE_OF_TIME * max(0.0, self.left_s())
            self.search(lambda: pause_s - self.used_s(), self.tick)

        def offer() -> None:
            self.cascades.offer(study, self.left_before_finals_s)

        proved, reasons = self.prover.decide(study, rank, search_on, offer)
        return self._compared(study, proved, reasons)

    def _compared(self, study: Study, proved: Proved, reasons: list[str]) -> dict[str, Any]:
        """Winner and baseline in pairs, their profiles, the verdict and the frontier."""
        winner, quality = proved.winner, proved.quality.difference if proved.quality else None
        begun_s = self.used_s()
        baseline, best = self.finals.compare(self.baseline, winner, self.left_s)
        compared_s = self.used_s() - begun_s
        answer = verdict(
            self.baseline, winner, best.ratio if best else None, quality, self.constraints, reasons,
            latencies=[each.text for each in proved.latencies], confidence=self.judge.confidence,
            unit=baseline.summary.unit,
        )  # fmt: skip
        own = self.documents.of(self.baseline, baseline, None)
        documents = {"baseline": own, "best": own}
        self.documents.keep(study.trials, self.baseline, own)
        if best is not None and winner is not None:
            document = self.documents.of(winner, best, quality)
            self.documents.keep(study.trials, winner, document)
            if answer.accepted:
                documents["best"] = document
        result: dict[str, Any] = {
            "run": str(self.run.path),
            **documents,
            "frontier": self.documents.frontier(study.trials, study.objectives),
            "verdict": answer.to_json(),
            "latency": [each.to_json() for each in proved.latencies],
            "phases": waterfall(baseline, best if answer.accepted else None, self.cost),
            "waterfall": None,
            "warnings": sorted({*baseline.summary.warnings, *(best.summary.warnings if best else ())}),
        }
        if answer.accepted and winner is not None:
            result["waterfall"] = self._levers(study, winner, compared_s) or result["phases"]
            result["artifact"] = str(self.finals.keep_artifact(winner, answer.text))
        if self.observed is not None:
            result["observed"] = self.observed.to_json()
            result["present"] = self._present(winner if answer.accepted else None)
        return result

    def _present(self, winner: Candidate | None) -> dict[str, Any] | None:
        """Whether what runs today is still the best; None where the run did not say what runs."""
        present = self.observed.present if self.observed else None
        if present is None:
            return None
        ratio = None
        if winner is not None and winner != present:
            with suppress(EngineError):  # it does not run any more, which is an answer too
                ratio = ratio_json(self.finals.ratio(present, winner, self.left_s))
        return {**present.to_json(), "ratio": ratio, "text": present_text(present, winner, ratio)}

    def _levers(self, study: Study, winner: Candidate, compared_s: float) -> list[dict[str, Any]] | None:
        """What each lever saves: measured in turn where there is time, else from what the search measured.

        Args:
            compared_s: how long it took to measure two candidates in turn.
        """
        steps = path(self.baseline, winner)
        if self.left_s() > compared_s * len(steps) / 3:
            self.tick("measuring what each lever saves")
            return self.finals.along(steps, self.left_s)
        whole = [t for t in study.trials if t.state == "complete" and t.cost is not None]
        costs = {t.candidate: t.cost for t in whole if t.cost is not None}
        seconds = {t.candidate: s for t in whole if (s := t.figures.get("cpu_s_per_token")) is not None}
        how = "from the search's own trials, measured at different times"
        return levers(steps, costs, how, seconds if self.cost.in_joules else None)
