"""Ablation: which lever saves how much, on the way from what is run today to the winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from negawatt.compress import parse
from negawatt.engine import Settings
from negawatt.engine.backend import Backend
from negawatt.engine.backends import backend
from negawatt.engine.settings import draft_name
from negawatt.errors import UnsupportedSetting
from negawatt.tuning.candidate import Candidate

SAME = 1e-6
"""Costs that differ by less than this share are the same: there is no saving to divide."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way.

    Attributes:
        lever: what was changed by it; several, where one alone cannot be run.
        choice: to what.
        candidate: with everything changed up to here.
    """

    lever: str
    choice: str
    candidate: Candidate


def path(baseline: Candidate, winner: Candidate) -> list[Step]:
    """The way from the baseline to the winner, one lever at a time, in the order of the stack.

    The model first, then its engine, the passes, how weights are stored, and how the engine runs them. The
    first step is the baseline itself, the last is the winner. Levers that are alike on both sides are left
    out, and one that cannot be run alone goes together with the next. The way to a cascade leads over its
    large model, which answers everything before the small one is put before it.
    """
    if winner.escalation is not None:
        small = " + ".join(filter(None, (winner.model, *winner.passes))) or "the first"
        return [*path(baseline, winner.escalation.to), Step("cascade", f"{small} answers first", winner)]
    steps = [Step("", "what you run today", baseline)]
    now, waiting = baseline, []
    for name, change in _LEVERS.items():
        changed = change(now, winner)
        if changed == now:
            continue
        now = changed
        waiting.append(name)
        if now == winner or _runs(now.settings):
            lever = " + ".join(waiting)
            steps.append(Step(lever, _choice(waiting, now), now))
            waiting = []
    return steps


def levers(
    steps: Sequence[Step],
    costs: Mapping[Candidate, float],
    how: str,
    seconds: Mapping[Candidate, float] | None = None,
) -> list[dict[str, Any]] | None:
    """Each step with its cost, and its share of the saving: logarithms of factors, which add up to 1.

    Args:
        steps: of `path`.
        costs: per token; steps without one are told together with the next.
        how: the costs were come by, in words.
        seconds: CPU seconds per token, where costs are joules; None where costs are CPU seconds.

    Returns:
        None where baseline or winner has no cost, or they cost the same.
    """
    ends = costs.get(steps[0].candidate), costs.get(steps[-1].candidate)
    if len(steps) < 2 or ends[0] is None or ends[1] is None or math.isclose(ends[0], ends[1], rel_tol=SAME):
        return None
    whole = math.log(ends[0] / ends[1])
    rows: list[dict[str, Any]] = []
    before, waiting = ends[0], []
    for step in steps:
        cost = costs.get(step.candidate)
        waiting += [step] if step.lever else []
        if cost is None:
            continue
        names = " + ".join(each.lever for each in waiting)
        choices = ", ".join(each.choice for each in waiting) or step.choice
        rows.append({
            "lever": names or None, "choice": choices, "label": f"{names}: {choices}" if names else choices,
            "cpu_s_per_token": cost if seconds is None else seconds.get(step.candidate),
            **({} if seconds is None else {"joules_per_token": cost}),
            "share": math.log(before / cost) / whole, "how": how,
        })  # fmt: skip
        before, waiting = cost, []
    return rows


def _runs(settings: Settings) -> bool:
    try:
        backend(settings.engine).check(settings)
    except UnsupportedSetting:
        return False
    return True


def _engine(now: Candidate, winner: Candidate) -> Candidate:
    """Another engine with the plainest of its formats, and of the rest what it has."""
    engine, settings = winner.settings.engine, now.settings
    if engine == settings.engine:
        return now
    kind = backend(engine)
    formats = [f for f in (settings.weight_format, "f16", "fp32") if f in kind.weight_formats]
    changed = settings.replace(
        engine=engine,
        weight_format=formats[0] if formats else "native",
        kv_cache=settings.kv_cache if settings.kv_cache in kind.kv_caches else "default",
        flash_attention=settings.flash_attention if kind.has_flash_attention else None,
        max_context=winner.settings.max_context,
        **({} if settings.device in kind.devices else {"device": "cpu", "gpu_layers": None}),
        speculation=settings.speculation if _speculates(settings, kind) else "none",
    )
    return replace(now, settings=changed)


def _speculates(settings: Settings, kind: type[Backend]) -> bool:
    """Whether an engine can speculate as these settings say."""
    return kind.has_drafts if settings.draft is not None else kind.has_speculation


def _passes(now: Candidate, winner: Candidate) -> Candidate:
    """The passes, with the format that runs what they packed."""
    packed = any(parse(each).packs for each in winner.passes)
    made = replace(now, passes=winner.passes)
    return made.run_as(weight_format=winner.settings.weight_format) if packed else made


def _set(field: str) -> Callable[[Candidate, Candidate], Candidate]:
    return lambda now, winner: now.run_as(**{field: getattr(winner.settings, field)})


def _threads(now: Candidate, winner: Candidate) -> Candidate:
    """Their number; without one they cannot be kept anywhere."""
    threads = winner.settings.threads
    kept = now.settings.cores if threads is not None else "default"
    return now.run_as(threads=threads, cores=kept)


_LEVERS: dict[str, Callable[[Candidate, Candidate], Candidate]] = {
    "model": lambda now, winner: replace(now, model=winner.model),
    "engine": _engine,
    "passes": _passes,
    "weights": _set("weight_format"),
    "KV cache": _set("kv_cache"),
    "flash attention": _set("flash_attention"),
    "placement": lambda now, winner: now.run_as(
        device=winner.settings.device, gpu_layers=winner.settings.gpu_layers
    ),
    "batch": _set("batch"),
    "threads": _threads,
    "cores": _set("cores"),
    "speculation": _set("speculation"),
    "context": _set("max_context"),
    "power cap": _set("power_cap_w"),
    "clock": _set("clock_mhz"),
}


def _choice(names: Sequence[str], now: Candidate) -> str:
    settings = now.settings
    said = {
        "model": now.model or "the first",
        "engine": f"{settings.engine} {settings.weight_format}",
        "passes": " + ".join(now.passes) or "none",
        "weights": settings.weight_format,
        "KV cache": settings.kv_cache,
        "flash attention": {True: "on", False: "off", None: "default"}[settings.flash_attention],
        "placement": settings.placement or "the processor",
        "batch": str(settings.batch),
        "threads": str(settings.threads or "default"),
        "cores": settings.cores,
        "speculation": f"draft {draft_name(settings.draft)}" if settings.draft else settings.speculation,
        "context": str(settings.max_context),
        "power cap": f"at most {settings.power_cap_w:g} W" if settings.power_cap_w else "none",
        "clock": f"at most {settings.clock_mhz} MHz" if settings.clock_mhz else "none",
    }
    return ", ".join(said[name] for name in names)
