"""`Profile`: what one way of running a model costs on a workload, and how well it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from negawatt.artifact import Artifact
from negawatt.energy import Energy, Provenance
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import UsageError
from negawatt.meter import energy_of_cpu_time, fingerprint
from negawatt.profiling.cost_model import CostModel
from negawatt.profiling.quality import Quality
from negawatt.profiling.scores import Items, Scores
from negawatt.profiling.summary import Summary
from negawatt.profiling.window import (
    Job,
    counted_on,
    groups_for,
    interleave,
    jobs_of,
    measure,
    warm_up,
)
from negawatt.workload import Ratio, Workload, ratio_interval

Progress = Callable[[float, float | None, str], None]

REFERENCE_SETTINGS = Settings(engine="transformers", weight_format="fp32")
"""The reference for quality, and the baseline unless another is named: stock fp32 arithmetic."""

ROUNDS = 4
HELD_BACK_GROUPS = 4
AGREEMENT_ITEMS = 12


@dataclass(frozen=True)
class Profile:
    """Joules, latency, memory and quality of one artifact under one `Settings` on one workload.

    Attributes:
        artifact: name of the artifact.
        settings: how it ran.
        summary: the measured windows.
        load_cpu_s, load_energy: what loading the model cost.
        peak_rss_bytes: peak memory of the worker.
        quality: scores of the quality set, or None where it was not judged.
        cost_model: fitted on the windows' steps, tested on other lengths; None where not fitted.
        version, info: the engine's version, and what really ran.
        ratio: CPU seconds per token of the baseline over this one's, measured in interleaved pairs.
        warnings: sentences about what disturbed the measurement.
    """

    artifact: str
    settings: Settings
    summary: Summary
    load_cpu_s: float
    load_energy: Energy
    peak_rss_bytes: int
    quality: Quality | None = None
    cost_model: CostModel | None = None
    version: str = ""
    info: dict[str, Any] | None = None
    ratio: Ratio | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The PROFILE document of the command line."""
        summary = self.summary
        low, high = summary.spread
        return {
            "artifact": self.artifact,
            "settings": self.settings.to_json(),
            "unit": summary.unit,
            "energy_per_token": summary.energy_per_token.to_json(),
            "cpu_s_per_token": summary.cpu_s_per_token,
            "cpu_s_per_token_spread": [low, high],
            "tokens_per_s": summary.tokens_per_s,
            "ttft_ms": summary.ttft_ms,
            "tpot_ms": summary.tpot_ms,
            "peak_rss_bytes": self.peak_rss_bytes,
            "quality": self.quality.to_json() if self.quality else None,
            "phases": {
                "load": {"energy": self.load_energy.to_json(), "cpu_s": self.load_cpu_s},
                "prefill": summary.phase("prefill", summary.prompted),
                "decode": summary.phase("decode", summary.generated),
            },
            "texts": {part.name: summary.of_part(part) for part in summary.parts.values()} or None,
            "speculation": summary.proposals if self.settings.speculation != "none" else None,
            "requests": sum(len(w.inputs) for w in summary.windows),
            "tokens": {"prompt": summary.prompted, "generated": summary.generated},
            "reference_load_s": [w.reference_s for w in summary.windows],
            "cost_model": self.cost_model.to_json() if self.cost_model else None,
            "ratio_to_baseline": ratio_json(self.ratio),
            "engine": {"version": self.version, **(self.info or {})},
            "machine": fingerprint(),
            "warnings": [*self.warnings, *summary.warnings],
        }


def about(artifact: Artifact, workload: Workload) -> dict[str, Any]:
    """What a run's manifest says of the model and the workload."""
    return {
        "artifact": {
            "name": artifact.name,
            "source": artifact.source,
            "license": artifact.license,
            "sha256": artifact.sha256,
            "notes": artifact.notes,
        },
        "workload": {
            "name": workload.name,
            "hash": workload.hash,
            "n_traffic": len(workload.traffic),
            "n_quality": len(workload.quality),
            "n_documents": len(workload.corpus.documents) if workload.corpus else 0,
            "metric": workload.metric,
        },
    }


def ratio_json(ratio: Ratio | None) -> dict[str, Any] | None:
    """A ratio with its interval as other programs read it; None stays None."""
    if ratio is None:
        return None
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high, "n": ratio.n}


def baseline_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """How many times fewer CPU seconds the candidate needs, from interleaved windows."""
    return ratio_interval(baseline, candidate, robust=len(baseline) >= 6)


def profile(
    artifact: Artifact | str,
    workload: Workload | str = "interactive-chat",
    settings: Settings | None = None,
    *,
    baseline: Settings | None = None,
    rounds: int = ROUNDS,
    requests_per_round: int = 2,
    quality_items: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Profile:
    """Measure a model on a workload.

    Joules are counted for each token generated; on a workload of questions that are answered by scoring,
    labelling or searching, and no traffic, for each answer (the document's ``unit`` says which).

    Args:
        artifact: a model, or what `Artifact.open` takes.
        workload: a workload, or what `Workload.open` takes.
        settings: how to run it; by default the reference.
        baseline: measured in turn with it, so that the ratio of the two is free of the host's drift.
        rounds: windows for each; at least 2.
        requests_per_round: requests in each window (a batch is always filled).
        quality_items: how many items of the quality set to judge; None for all, 0 for none.
        progress: called with (done, total, what is being done).

    Raises:
        UsageError: fewer than 2 rounds, or a baseline where there are limits (`Settings.limits`).
        WorkloadError: the workload has nothing to count joules on.
        EngineError: the engine refuses or fails.
    """
    artifact = Artifact.open(artifact) if isinstance(artifact, str) else artifact
    workload = Workload.open(workload) if isinstance(workload, str) else workload
    settings = settings or REFERENCE_SETTINGS
    if rounds < 2 or requests_per_round < 1:
        raise UsageError("a profile needs at least 2 rounds of at least 1 request")
    if baseline is not None and (settings.limits or baseline.limits):
        raise UsageError(
            "a power cap or clock holds for the whole machine, so nothing can be measured in turn with it; "
            "profile each on its own and compare the joules"
        )
    jobs = jobs_of(artifact.tokenizer, counted_on(workload), settings.max_context)
    measured = _measured(artifact, settings, baseline, jobs, rounds, requests_per_round, progress)
    if quality_items != 0:
        quality = judge_artifact(artifact, settings.without_limits(), workload, quality_items, progress)
        measured = replace(measured, quality=quality)
    return measured


def _measured(
    artifact: Artifact,
    settings: Settings,
    baseline: Settings | None,
    jobs: list[Job],
    rounds: int,
    per_round: int,
    progress: Progress,
) -> Profile:
    """The profile without quality."""
    total = rounds * (1 if baseline is None else 2) + HELD_BACK_GROUPS
    progress(0, total, f"loading {settings}")
    with Engine(artifact, settings) as engine:
        warm_up(engine, jobs[0])
        groups = groups_for(jobs, settings.batch, rounds, per_round)
        if baseline is None:
            (windows,) = interleave(
                [engine], [[g] for g in groups], lambda n: progress(n, total, str(settings))
            )
            ratio = None
        else:
            with Engine(artifact, baseline) as other:
                warm_up(other, jobs[0])
                theirs = groups_for(jobs, baseline.batch, rounds, per_round)
                pairs = list(zip(groups, theirs, strict=True))
                windows, others = interleave(
                    [engine, other], pairs, lambda n: progress(n, total, "measuring in turn")
                )
            ratio = baseline_ratio([w.cpu_s_per_token for w in others], [w.cpu_s_per_token for w in windows])
        summary = Summary(tuple(windows))
        progress(total - HELD_BACK_GROUPS, total, "testing the cost model on other lengths")
        model = _cost_model(engine, summary, jobs, settings.max_context)
        peak = engine.last_usage.peak_rss_bytes
        return Profile(
            artifact.name, settings, summary, engine.load_usage.cpu_s,
            energy_of_cpu_time(engine.load_usage.cpu_s), peak, None, model, engine.version, engine.info,
            ratio, (*_about_placement(engine.settings, summary), *_about_limits(engine, summary)),
        )  # fmt: skip


def _about_placement(settings: Settings, summary: Summary) -> tuple[str, ...]:
    """What whoever reads the joules of a model on another device has to know.

    The meter charges a GPU whole to what is measured, beside the processor's part, if it can count it.
    """
    counted = any(name.startswith("gpu/") for w in summary.windows for name in w.measurement.components)
    if counted or settings.device == "cpu" or settings.gpu_layers == 0:
        return ()
    return (
        f"no counter measures what {settings.device} devices draw here, and none of it is among the joules: "
        "they are the processor's alone, and CPU seconds too say nothing of it",
    )


def _about_limits(engine: Engine, summary: Summary) -> tuple[str, ...]:
    """What whoever reads the joules of an engine with limits has to know."""
    limits = engine.settings.limits
    if not limits:
        return ()
    told = []
    if summary.energy.provenance > Provenance.DERIVED:
        told.append(
            "no counter measures energy here, and joules estimated from CPU time know nothing of "
            f"{limits}: they do not show what that saves"
        )
    window_s = engine.info.get("limits_window_s", 0.0)
    lasted_s = sum(window.wall_s for window in summary.windows)
    if lasted_s < 2 * window_s:
        told.append(
            f"the power cap holds on average over {window_s:.3g} s, and no more than {lasted_s:.3g} s were "
            "measured: with more --rounds it shows what it does"
        )
    return tuple(told)


def _cost_model(engine: Engine, summary: Summary, jobs: list[Job], max_context: int) -> CostModel:
    """Fitted on the windows; tested on jobs of other lengths than any the fit saw, or on other questions."""
    per_cpu_s = summary.energy.scaled(1 / summary.cpu_s)
    model = CostModel.fit(
        summary.steps, batch=engine.settings.batch, cpu_s=summary.cpu_s, energy_per_cpu_s=per_cpu_s
    )
    batch = engine.settings.batch
    requests = [job for job in jobs if isinstance(job, Request)]
    groups: Sequence[Sequence[Job]]
    if requests:
        groups = other_lengths(requests, batch, max_context)
    else:  # shuffled by their names, so that short and long ones meet
        others = sorted(jobs, key=lambda job: sha256(repr(job).encode()).digest())
        groups = [others[k * batch : (k + 1) * batch] for k in range(HELD_BACK_GROUPS)]
    return model.tested_on([measure(engine, group).cost for group in groups if group])


def other_lengths(requests: Sequence[Request], batch: int, max_context: int) -> list[list[Request]]:
    """Groups of requests whose prompts and answers are shorter and longer than the traffic's."""
    longest = max((r.tokens for r in requests), key=len)
    middle = sorted(len(r.tokens) for r in requests)[len(requests) // 2]
    text = list(longest) * math.ceil(max_context / len(longest))
    shapes = ((middle // 3 + 1, 24), (middle, 40), (2 * middle, 150), (3 * middle, 16))
    groups = []
    for n_in, n_out in shapes[:HELD_BACK_GROUPS]:
        n_in = max(1, min(n_in, max_context - n_out))
        groups.append([Request(text[k : k + n_in] or text[:n_in], n_out) for k in range(max(1, batch))])
    return groups


def judge_artifact(
    artifact: Artifact, settings: Settings, workload: Workload, n: int | None, progress: Progress
) -> Quality | None:
    """Quality on the first `n` items (all if None) of a workload's quality set.

    Without a quality set it is the agreement (top-1 match) with the reference on the traffic, and without
    relevant documents the overlap with what the reference finds. None where there is no reference to agree
    with, or the settings are the reference's own.
    """
    items: Items = workload.quality
    if not workload.labelled and settings.weight_format == REFERENCE_SETTINGS.weight_format:
        return None
    if not items:
        items = workload.traffic[:AGREEMENT_ITEMS]
    elif n is not None:
        items = workload.subset(n).quality
    reference = REFERENCE_SETTINGS.replace(max_context=settings.max_context)
    with Scores(artifact, workload, reference) as scores:
        return scores.quality(settings, items, lambda text: progress(0, None, text))
