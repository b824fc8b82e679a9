"""The answer at the top of a report: what to run, what it saves, what finding out cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.report import words
from negawatt.report.facts import Facts
from negawatt.report.reading import number, text
from negawatt.report.records import Trial, proposer


@dataclass(frozen=True)
class Answer:
    """The verdict in words.

    Attributes:
        status: a word or two that tell what kind of answer this is.
        headline: one sentence, the largest of the page.
        saving: a second one, what that saves; empty where nothing is proved.
        text: what stands behind it.
        figures: (what, figure, remark) of the most important numbers.
    """

    status: str
    headline: str
    saving: str
    text: str
    figures: tuple[tuple[str, str, str], ...]


def answer(facts: Facts) -> Answer:
    """Put the outcome of a run in words; an unfinished run gets no verdict."""
    if facts.kind == "profile":
        return _profile(facts)
    if facts.verdict is None:
        return _unfinished(facts)
    return _verdict(facts)


def spoken(settings: Mapping[str, Any]) -> str:
    """Settings as one reads them out: ``llamacpp with q4_0 weights, 1 thread, batch 1``."""
    weights = text(settings.get("weight_format"))
    parts = [text(settings.get("engine")) or "an unknown engine"]
    if weights:
        parts[0] += f" with {'the weights as they are' if weights == 'native' else f'{weights} weights'}"
    threads = settings.get("threads")
    parts.append(
        "its default threads" if threads is None else f"{threads} thread{'s' if threads != 1 else ''}"
    )
    if text(settings.get("cores")) not in ("", "default"):
        parts[-1] += f" on {settings['cores']} cores"
    if (device := text(settings.get("device"))) not in ("", "cpu"):
        layers = settings.get("gpu_layers")
        parts.append(f"{'all' if layers is None else layers} layers on {device}")
    parts.append(f"batch {settings.get('batch') or 1}")
    if settings.get("flash_attention"):
        parts.append("flash attention")
    if text(settings.get("kv_cache")) not in ("", "default"):
        parts.append(f"{settings['kv_cache']} KV cache")
    if text(settings.get("speculation")) not in ("", "none"):
        draft = proposer(settings)
        parts.append(f"proposals by {draft}" if draft else f"{settings['speculation']} speculation")
    if cap := settings.get("power_cap_w"):
        parts.append(f"at most {cap:g} W")
    if clock := settings.get("clock_mhz"):
        parts.append(f"at most {clock:g} MHz")
    if text(settings.get("passes")):
        parts.append(f"made smaller by {settings['passes']}")
    if text(settings.get("model")):
        parts[0] = f"{settings['model']} on {parts[0]}"
    if text(settings.get("cascade")):
        parts.append(f"and what it is not sure of by {settings['cascade']}")
    return ", ".join(parts)


def _verdict(facts: Facts) -> Answer:
    verdict, best = facts.verdict, words.best_settings(facts)
    assert verdict is not None
    keep = not facts.recommends
    headline = "Keep what you have." if keep else f"Run {spoken(best)}."
    saving = "" if keep or verdict.saving is None else f"{words.saved(verdict.saving)} less energy per token."
    metric = words.metric_of(facts)
    bound = verdict.drop_bound
    search = facts.search
    count = f"{search.trials} trial{'' if search.trials == 1 else 's'}"
    figures = [
        ("Energy saved per token", words.saved(verdict.saving), _against(facts)),
        (
            f"Quality drop ({metric})",
            words.drop_verdict(facts),
            "no bound was recorded"
            if bound is None
            else f"at most {words.points(bound, metric)}, at 95{words.NBSP}%",
        ),
        (
            "The search cost",
            _search_cost(facts),
            f"{count} in {words.duration(search.duration_s)}",
        ),
        ("Paid back after", *_payback(facts)),
    ]
    if verdict.saving is None and verdict.drop is None:  # nothing came as far as the comparison
        figures = figures[2:]
    return Answer(
        "Proven saving" if not keep else "No change", headline, saving, verdict.text, tuple(figures)
    )


def _against(facts: Facts) -> str:
    ratio = facts.verdict.ratio if facts.verdict else None
    if ratio is None:
        return "95 % interval of interleaved pairs"
    unit = "joules" if facts.counts_joules else "CPU-seconds"
    return f"{words.times(ratio)} fewer {unit}, in interleaved pairs"


def _search_cost(facts: Facts) -> str:
    if facts.search.energy.is_missing:
        return f"{words.quantity(facts.search.cpu_s, 's')} of CPU time"
    return words.joules(facts.search.energy)


def _payback(facts: Facts) -> tuple[str, str]:
    count = facts.search.payback_tokens
    if count is None:
        return "never", "nothing is saved that could pay for it"
    return words.tokens(count), "generated with the new settings instead of today's"


def _unfinished(facts: Facts) -> Answer:
    most = number(facts.manifest, "constraints", "max_quality_drop")
    tried = [t for t in facts.trials if t.state == "complete" and _may_hold(t, most)]
    search = facts.search
    headline = f"Unfinished: no verdict after {search.trials} trial{'s' if search.trials != 1 else ''}."
    text_ = (
        "The search was interrupted or is still going; nothing below has been proved. The same command with"
        " the same run folder goes on where it stopped."
    )
    cheapest = min(tried, key=lambda t: _cost(t, facts) or float("inf"), default=None)
    figures = [
        ("Failed or dropped", f"{search.failed} failed", f"{search.pruned} dropped early"),
        (
            "Spent so far",
            f"{words.quantity(search.cpu_s, 's')} of CPU time",
            words.duration(search.duration_s),
        ),
    ]
    if cheapest is not None:
        per_token = f"{words.joules(cheapest.costs.energy)} per token"
        dropped = words.drop(cheapest.drop, words.metric_of(facts))
        figures.insert(0, ("Cheapest so far", cheapest.label, per_token))
        figures.insert(1, ("Its quality drop", dropped, "on few items, not yet proved"))
    return Answer("Unfinished", headline, "", text_, tuple(figures))


def _cost(trial: Trial, facts: Facts) -> float | None:
    """What a token cost in the search's unit."""
    return trial.drift_free_cost if facts.counts_joules else trial.costs.cpu_s_per_token


def _may_hold(trial: Trial, most: float | None) -> bool:
    """Whether what was seen of a trial's quality still leaves it possible that the limit holds."""
    if most is None:
        return True
    return trial.drop is not None and (trial.drop.mean if trial.drop.low is None else trial.drop.low) <= most


def _profile(facts: Facts) -> Answer:
    best = facts.best
    if best is None:
        return Answer("Unfinished", "Unfinished: nothing was measured to the end.", "", "", ())
    c = best.costs
    cost = c.energy if not c.energy.is_missing else None
    spent = words.joules(cost) if cost else f"{words.quantity(c.cpu_s_per_token, 's')} of CPU time"
    speed = f"{words.figure(c.tokens_per_s)} tokens/s" if c.tokens_per_s else words.NOT_MEASURED
    figures = [
        ("CPU time per token", words.quantity(c.cpu_s_per_token, "s"), "of all threads together"),
        ("Quality", words.quality(c.quality), c.quality.metric if c.quality else ""),
        ("First token", words.milliseconds(c.ttft_p95_ms), "95th percentile"),
        ("Speed", speed, f"peak memory {words.memory(c.memory_bytes)}"),
    ]
    text_ = f"{facts.artifact_name} on {spoken(best.settings)}."
    return Answer("Profile", f"{spent} per token.", "", text_, tuple(figures))
