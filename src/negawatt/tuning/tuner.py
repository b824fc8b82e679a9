"""`tune`: from a model and a workload to a verdict: search, finalists in pairs, proof, artifact."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.errors import NegawattError, RunError, UsageError
from negawatt.meter import Meter, energy_of_cpu_time, fingerprint, station
from negawatt.profiling import REFERENCE_SETTINGS, Profile, about
from negawatt.profiling.profiler import Progress
from negawatt.profiling.window import requests_of
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.finals import Finals, waterfall
from negawatt.tuning.judge import Judge
from negawatt.tuning.memory import Memory
from negawatt.tuning.prospect import prospect_of_latency, prospect_of_quality
from negawatt.tuning.prover import Proved, Prover
from negawatt.tuning.question import Question
from negawatt.tuning.space import Space
from negawatt.tuning.strategy import check_strategy
from negawatt.tuning.study import Study, difference_json
from negawatt.tuning.trial import Trial
from negawatt.tuning.verdict import Constraints, pareto, verdict
from negawatt.tuning.workshop import Workshop
from negawatt.workload import (
    Difference,
    QualityItem,
    TrafficItem,
    Workload,
)
from negawatt.workload.split import draw_order

SEARCH_SHARE_OF_TIME = 0.45
"""The rest of the time is for the finalists: measuring them in pairs and proving their quality."""
SEARCH_ITEMS = 96
"""Quality items that the search may look at; all others are kept for the proof."""
AGAIN_SHARE_OF_TIME = 0.4
"""Of the time left when no finalist's quality could be proved: for searching on without their like."""
RANKING_SHARE_OF_TIME = 0.08
"""For measuring the finalists in turn."""
FINALS_SHARE_OF_TIME = 0.12
"""Kept free of the time for measuring the winner and the baseline in turn."""


def tune(
    artifact: Artifact | str,
    workload: Workload | str = "chat-piqa",
    *,
    constraints: Constraints | None = None,
    space: Space | None = None,
    baseline: Settings = REFERENCE_SETTINGS,
    time_budget_s: float = 360.0,
    fewest_items: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    strategy: str = "default",
    path: Path | None = None,
    command: Sequence[str] = (),
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Any]:
    """Find the way of running a model that spends the fewest joules per token, and prove it.

    Args:
        artifact: a model, or what `Artifact.open` takes.
        workload: what it is asked, or what `Workload.open` takes.
        constraints: what the answer must keep.
        space: what may be tried; by default everything installed here, at batch 1.
        baseline: what is run today; the reference for quality and for the saving.
        time_budget_s: for all of it; a resumed search gets what is left.
        fewest_items: quality items that a proof needs at least.
        confidence: of the bound on the quality drop.
        seed: of the search.
        strategy: what decides which candidate is next; a name of `negawatt.tuning.strategy.STRATEGIES`.
        command: what the user typed, kept in the run for who wants to repeat it.
        path: the run folder. An unfinished run of the same question there is continued.
        progress: called with (seconds used, seconds in all, what is being done).

    Returns:
        The ``tune`` document of the command line, as it also stands in the run's ``result.json``.

    Raises:
        UsageError: the workload has no traffic, or too little to divide.
        RunError: the folder holds something else, or another question's run.
    """
    check_strategy(strategy)
    artifact = Artifact.open(artifact) if isinstance(artifact, str) else artifact
    workload = Workload.open(workload) if isinstance(workload, str) else workload
    constraints = constraints or Constraints()
    space = space or Space.default()
    if len(workload.traffic) < 4:
        raise UsageError(f"workload {workload.name} has {len(workload.traffic)} requests; a search needs 4")
    question = Question(
        artifact.sha256, workload.hash, Candidate(baseline), constraints, space, seed, strategy
    )
    run = _open_run(path, question, artifact, workload, command)
    session = _Session(run, artifact, workload, question, time_budget_s, fewest_items, confidence, progress)
    with run:
        return session.go()


def _open_run(
    path: Path | None, question: Question, artifact: Artifact, workload: Workload, command: Sequence[str]
) -> Run:
    if path is not None and (path / "run.json").exists():
        run = Run.open(path, kind="tune")
        if run.result is not None:
            raise RunError(
                f"{path} is finished; see it with: negawatt report {path}, or choose another folder"
            )
        if run.manifest.get("question") != json.loads(json.dumps(question.to_json())):
            raise RunError(f"{path} holds an unfinished search for something else; choose another folder")
        if run.manifest.get("machine", {}).get("id") != fingerprint()["id"]:
            raise RunError(
                f"{path} was begun on another machine, whose figures do not compare with this one's"
            )
        run.lock()
        return run
    return Run.create(
        "tune",
        path=path,
        question=question.to_json(),
        **about(artifact, workload),
        constraints={**question.constraints.to_json(), "batch": list(question.space.batches)},
        baseline=question.baseline.settings.to_json(),
        command=list(command),
        machine=fingerprint(),
        sensors=[status.to_json() for status in station().statuses],
    )  # fmt: skip


class _Session:
    """One sitting of a search: what `tune` does, step by step."""

    def __init__(
        self,
        run: Run,
        artifact: Artifact,
        workload: Workload,
        question: Question,
        time_budget_s: float,
        fewest_items: int,
        confidence: float,
        progress: Progress,
    ) -> None:
        self.run, self.workshop, self.question = run, Workshop(artifact), question
        self.constraints, self.baseline = question.constraints, question.baseline
        self.fewest_items, self.time_budget_s, self.progress = fewest_items, time_budget_s, progress
        earlier = list(run.records("trial"))
        self.earlier_cpu_s = sum(float(r.get("cpu_s_spent") or 0.0) for r in earlier)
        self.earlier_s = sum(float(r.get("duration_s") or 0.0) for r in earlier)
        self.started = time.monotonic()
        searched, held = workload.split(0.5, question.seed)
        self.search_requests = requests_of(artifact.tokenizer, searched.traffic, question.space.max_context)
        self.held_requests = requests_of(artifact.tokenizer, held.traffic, question.space.max_context)
        self.search_items, self.held_items = self._items(workload, searched, held)
        self.memory = Memory(question.artifact, fingerprint()["id"])
        self.judge = Judge(self.workshop, workload, question.baseline, confidence)
        self.finals = Finals(run, self.workshop, self.held_requests, self.tick)
        self.prover = Prover(
            run, self.judge, self.finals, self.constraints, self.held_items,
            [*self.held_requests, *self.search_requests], fewest_items, self.tick,
            lambda: self.left_s(1 - FINALS_SHARE_OF_TIME),
        )  # fmt: skip

    def _items(
        self, workload: Workload, searched: Workload, held: Workload
    ) -> tuple[Sequence[QualityItem | TrafficItem], Sequence[QualityItem | TrafficItem]]:
        """Quality items to search with, and those kept for the proof."""
        if not workload.quality:  # without labels: agreement with the baseline on the traffic
            return searched.traffic[:8], held.traffic
        n = min(SEARCH_ITEMS, len(workload.quality) // 3)
        if n < 1:
            raise UsageError(f"a quality set of {len(workload.quality)} items is too small; give at least 3")
        drawn = draw_order(workload.quality, 0)  # as `Workload.subset` draws: a profile's answers are reused
        return drawn[:n], drawn[n:]

    # -- time ------------------------------------------------------------------------------------

    def used_s(self) -> float:
        return self.earlier_s + time.monotonic() - self.started

    def left_s(self, share: float = 1.0) -> float:
        return share * self.time_budget_s - self.used_s()

    def tick(self, text: str) -> None:
        self.progress(min(self.used_s(), self.time_budget_s), self.time_budget_s, text)

    # -- the steps -------------------------------------------------------------------------------

    def go(self) -> dict[str, Any]:
        with Meter() as meter:
            study = Study(
                self.run, self.question.space, self.constraints, self.judge, self.baseline,
                self.search_requests, self.search_items, len(self.held_items), self.question.seed,
                self.question.strategy, self.memory,
            )  # fmt: skip
            try:
                self._foretell()
                study.search(lambda: self.left_s(SEARCH_SHARE_OF_TIME), self.tick)
                result = self._decide(study)
            finally:
                self.judge.scores.close()
        measurement = meter.measurement
        cpu_s = measurement.cpu_s + self.earlier_cpu_s
        energy = measurement.energy
        if self.earlier_cpu_s:
            energy = energy + energy_of_cpu_time(self.earlier_cpu_s)
        result["search"] = self._accounts(study, energy, cpu_s, result)
        self.run.finish(result)
        with suppress(NegawattError):  # it helps the next search; this one's result stands without it
            self.memory.keep(study.trials, str(self.run.path), self.question.workload, study.reference_s)
        return result

    def _foretell(self) -> None:
        """Before anything is spent: what the items and requests at hand could prove.

        Raises:
            Infeasible: they could prove nothing.
        """
        limits, texts = self.constraints, []
        if limits.max_quality_drop is not None and self.held_items:
            texts.append(
                prospect_of_quality(
                    self.judge.workload, len(self.held_items), limits.max_quality_drop, self.fewest_items,
                    self.judge.confidence,
                )
            )  # fmt: skip
        if limits.p95_ttft_ms is not None or limits.p95_tpot_ms is not None:
            n = len(self.held_requests) + len(self.search_requests)
            texts.append(prospect_of_latency(n, self.judge.confidence))
        for text in texts:
            if not any(r["text"] == text for r in self.run.records("note")):
                self.run.append("note", {"text": text})
            self.tick(text)

    def _decide(self, study: Study) -> dict[str, Any]:
        """From the trials to the verdict."""

        def rank(finalists: Sequence[Candidate]) -> list[Candidate]:
            until_s = self.used_s() + RANKING_SHARE_OF_TIME * self.time_budget_s
            return self.finals.ranked(finalists, lambda: until_s - self.used_s())

        def search_on() -> None:
            pause_s = self.used_s() + AGAIN_SHARE_OF_TIME * max(0.0, self.left_s())
            study.search(lambda: pause_s - self.used_s(), self.tick)

        proved, reasons = self.prover.decide(study, rank, search_on)
        return self._compared(study, proved, reasons)

    def _compared(self, study: Study, proved: Proved, reasons: list[str]) -> dict[str, Any]:
        """Winner and baseline in pairs, their profiles, the verdict and the frontier."""
        winner, quality = proved.winner, proved.quality.difference if proved.quality else None
        baseline, best = self.finals.compare(self.baseline, winner, self.left_s)
        answer = verdict(
            self.baseline, winner, best.ratio if best else None, quality, self.constraints, reasons,
            latencies=[each.text for each in proved.latencies], confidence=self.judge.confidence,
        )  # fmt: skip
        own = self._document(self.baseline, baseline, None)
        documents = {"baseline": own, "best": own}
        self._record_final(study, self.baseline, own)
        if best is not None and winner is not None:
            document = self._document(winner, best, quality)
            self._record_final(study, winner, document)
            if answer.accepted:
                documents["best"] = document
        result: dict[str, Any] = {
            "run": str(self.run.path),
            **documents,
            "frontier": self._frontier(study),
            "verdict": answer.to_json(),
            "latency": [each.to_json() for each in proved.latencies],
            "waterfall": waterfall(baseline, best if answer.accepted else None),
            "warnings": sorted({*baseline.summary.warnings, *(best.summary.warnings if best else ())}),
        }
        if answer.accepted and winner is not None:
            result["artifact"] = str(self.finals.keep_artifact(winner, answer.text))
        return result

    def _record_final(self, study: Study, candidate: Candidate, document: dict[str, Any]) -> None:
        """The figures of the proof beside those of the search."""
        names = (
            "energy_per_token", "cpu_s_per_token", "tokens_per_s", "ttft_ms", "tpot_ms", "peak_rss_bytes",
            "quality", "quality_drop", "ratio_to_baseline", "warnings",
        )  # fmt: skip
        figures = {name: document.get(name) for name in names}
        number = next((t.number for t in study.trials if t.candidate == candidate), 0)
        trial = Trial(number, candidate, "complete", None, figures=figures)
        self.run.append("trial", trial.to_record("final"))

    def _document(self, candidate: Candidate, profile: Profile, quality: Difference | None) -> dict[str, Any]:
        """A profile as JSON, with what is known of its quality on the held-out items."""
        document = {**profile.to_json(), **candidate.to_json()}
        if quality is not None:
            document["quality_drop"] = difference_json(quality)
        known = self.judge.scores.known(candidate, self.held_items)
        if known is not None:
            document["quality"] = self.judge.summary(known)
        return document

    def _frontier(self, study: Study) -> list[dict[str, Any]]:
        """Trials with a judged quality that no other beats in both cost and quality.

        Quality is the paired difference to the baseline: trials are judged on different numbers of items.
        """

        def drop(trial: Trial) -> float:
            return float((trial.figures.get("quality_drop") or {}).get("drop", 0.0))

        judged = [t for t in study.trials if t.state == "complete" and t.figures.get("quality")]
        best = pareto(judged, lambda t: (t.cost or math.inf, drop(t)))
        return [
            {
                "artifact": self.workshop.artifact(t.candidate).name,
                **t.candidate.to_json(),
                "trial": t.number,
                **t.figures,
            }
            for t in best
        ]

    def _accounts(self, study: Study, energy: Energy, cpu_s: float, result: dict[str, Any]) -> dict[str, Any]:
        """What the search cost, and after how many tokens that is paid back."""
        saved = result["baseline"]["cpu_s_per_token"] - result["best"]["cpu_s_per_token"]
        states = [t.state for t in study.trials]
        return {
            "strategy": self.question.strategy,
            "prediction": study.proposals.trust(),
            "ended": study.proposals.ended or None,
            "trials": len(study.trials),
            "pruned": states.count("pruned"),
            "failed": states.count("failed"),
            "energy": energy.to_json(),
            "cpu_s": cpu_s,
            "duration_s": self.used_s(),
            "payback_tokens": math.ceil(cpu_s / saved)
            if result["verdict"]["accepted"] and saved > 0
            else None,
        }
