"""What one candidate costs, on an open engine: a first look at a few tokens, then whole answers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from negawatt.compress.dissection import weights_read
from negawatt.engine import Engine, Request
from negawatt.errors import ArtifactError
from negawatt.profiling.cascade import Runner
from negawatt.profiling.summary import Summary
from negawatt.profiling.window import Job, Window, groups_for, measure, spread
from negawatt.tuning.cost import CPU_SECONDS, Cost

SCREEN_TOKENS = 16
"""Tokens of each answer in the first, cheap look at a candidate."""
LOOK_QUESTIONS = 4
"""Questions in it, where joules are counted on those."""
SEARCH_GROUPS = 2
"""Groups of requests that a candidate which passes the first look is measured on."""
ENOUGH_S = 20.0
"""A candidate is measured no longer than this, as far as one group of short answers allows."""
LEAST_S = 0.3
"""A window in which joules are counted lasts at least so long: counters are refreshed every 1 to 100 ms, and
the share of other processes is known in ticks of 10 ms."""


@dataclass(frozen=True, slots=True)
class Look:
    """A first look at a candidate.

    Attributes:
        cost: per token, in the unit of the search; CPU seconds with the reference load taken out.
        s_per_token: seconds by the clock.
        peak_rss_bytes: of the worker.
        spent_cpu_s: what the look itself cost, loading included.
        lasted_s: how long it took, loading included.
        read_bytes: of weights that each step reads, of layers and of the head; zeros where that is unknown.
    """

    cost: float
    s_per_token: float
    peak_rss_bytes: int
    spent_cpu_s: float
    lasted_s: float = 0.0
    read_bytes: tuple[float, float] = (0.0, 0.0)


def take(engine: Runner, jobs: Sequence[Job], cost: Cost) -> Window:
    """A window of these jobs; of them again and again, in one window, where joules are counted in it."""
    window = measure(engine, jobs)
    if not cost.in_joules or window.wall_s >= LEAST_S:
        return window
    times = math.ceil(1.2 * LEAST_S / max(window.wall_s, 1e-3))
    return measure(engine, list(jobs) * times)


def first_look(
    engine: Engine,
    jobs: Sequence[Job],
    reference_s: float,
    per_token: float = 1.0,
    cost: Cost = CPU_SECONDS,
) -> Look:
    """One short answer for each slot, and what a token of the whole ones will cost.

    Args:
        engine: open and warmed up.
        jobs: to draw from.
        reference_s: cost of the reference load at the start of the run.
        per_token: tokens of this model for a token of the baseline's; see `Traffic`.
        cost: what is counted.

    Raises:
        EngineError: joules are to be counted, and are missing.
    """
    n = 1 if isinstance(jobs[0], Request) else LOOK_QUESTIONS
    group = spread(jobs, max(n, engine.settings.batch))
    window = take(engine, [answered_in(job, SCREEN_TOKENS) for job in group], cost)
    value = cost.per_output([window], [engine.settings.device]) * per_token * to_whole([window], group)
    return Look(
        cost=cost.at_start(value, reference_s, window.reference_s),
        s_per_token=window.wall_s / sum(window.outputs),
        peak_rss_bytes=engine.last_usage.peak_rss_bytes,
        spent_cpu_s=engine.spent_cpu_s,
        read_bytes=_read_bytes(engine),
    )


def _read_bytes(engine: Engine) -> tuple[float, float]:
    try:
        return weights_read(engine, engine.artifact.shape)
    except ArtifactError:
        return 0.0, 0.0  # a model that does not state its dimensions


def measured(
    engine: Engine,
    jobs: Sequence[Job],
    reference_s: float,
    look: Look,
    groups: int | None = None,
    per_token: float = 1.0,
    cost: Cost = CPU_SECONDS,
) -> tuple[float, dict[str, Any]]:
    """The cost per token of whole answers, as `Look.cost` is given, and the figures for the record.

    Args:
        engine, jobs, reference_s: as for `first_look`.
        look: what was seen first; a slow candidate in a large batch gets shorter answers.
        groups: of requests; by default fewer in a large batch, whose groups are large.
        per_token, cost: as for `first_look`.

    Raises:
        EngineError: as for `first_look`.
    """
    windows: list[Window] = []
    asked: list[Job] = []
    started, batch = time.monotonic(), engine.settings.batch
    groups = groups or (SEARCH_GROUPS if batch < 8 else 1)
    for group in groups_for(jobs, batch, groups, 1):
        windows.append(take(engine, _shortened(group, look.s_per_token), cost))
        asked += group
        if time.monotonic() - started > ENOUGH_S:
            break  # a slow candidate, or a busy machine: more windows would eat the search's time
    summary = Summary(tuple(windows))
    reference = median(w.reference_s for w in windows)
    figures = {
        "energy_per_token": summary.energy_per_token.to_json(),
        "cpu_s_per_token": summary.cpu_s_per_token,
        "tokens_per_s": summary.tokens_per_s,
        "ttft_ms": summary.ttft_ms,
        "tpot_ms": summary.tpot_ms,
        "reference_s": reference,
        "window_s": sum(w.wall_s for w in windows) / len(windows),
        "engine": {"version": engine.version, **engine.info},
        "warnings": summary.warnings,
    }
    value = cost.per_output(windows, [engine.settings.device])
    if cost.in_joules:
        figures["joules_per_token"] = value
    return cost.at_start(value * to_whole(windows, asked) * per_token, reference_s, reference), figures


def to_whole(windows: Sequence[Window], jobs: Sequence[Job]) -> float:
    """What a token of whole answers costs, as a multiple of what one of these windows' shorter ones did.

    A short answer pays for its whole prompt, which would favour whatever reads prompts cheaply; the tokens
    that it lacks cost what those after its first did.

    Args:
        jobs: what the windows would have answered whole, each as often as the others.
    """
    whole = [job.max_new_tokens for job in jobs if isinstance(job, Request)]
    given = [n for window in windows for n in window.outputs]
    wanted, outputs = sum(whole) * len(given) / max(len(whole), 1), sum(given)
    cpu_s = sum(window.cpu_s for window in windows)
    later = [step for w in windows for step in w.steps if step.phase == "decode"]
    yielded = sum(step.produced for step in later)
    if wanted <= outputs or not yielded or cpu_s <= 0:
        return 1.0
    lacking_s = (wanted - outputs) * sum(step.cpu_s for step in later) / yielded
    return (cpu_s + lacking_s) / wanted / (cpu_s / outputs)


def answered_in(job: Job, tokens: int) -> Job:
    """The job with an answer of at most so many tokens, where a text is written at all."""
    if not isinstance(job, Request):
        return job
    return replace(job, max_new_tokens=min(tokens, job.max_new_tokens))


def _shortened(group: Sequence[Job], s_per_token: float) -> list[Job]:
    """The group, its answers cut so far that it takes `ENOUGH_S`, though not to a mere first look."""
    foreseen_s = s_per_token * sum(job.max_new_tokens for job in group if isinstance(job, Request))
    if len(group) == 1 or foreseen_s <= ENOUGH_S:
        return list(group)
    share, least = ENOUGH_S / foreseen_s, 2 * SCREEN_TOKENS
    return [
        answered_in(job, max(least, round(share * job.max_new_tokens)))
        for job in group
        if isinstance(job, Request)
    ]
