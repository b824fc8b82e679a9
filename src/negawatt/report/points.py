"""Where the trials of a run stand between cost and quality: the data of the Pareto plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Provenance
from negawatt.report import words
from negawatt.report.facts import Facts
from negawatt.report.reading import number
from negawatt.report.records import Costs, Drop, Interval, Profile, Quality, Trial, same

KINDS = ("pruned", "trial", "final", "baseline", "best")
"""In the order they are drawn, the most important last and on top."""


@dataclass(frozen=True)
class Point:
    """A trial or profile on the plot.

    Attributes:
        kind: one of `KINDS`.
        x: energy (J) or CPU seconds per token; None when the trial failed before it was known.
        y: quality, see `against_today`; None when it was not measured.
        words: what the tooltip says, one fact a line, the first line its title.
        row: place of the trial in the table, or None.
        settings: how it ran.
    """

    kind: str
    x: Interval | None
    y: Interval | None
    words: str
    row: int | None
    settings: Mapping[str, Any]


def in_joules(facts: Facts) -> bool:
    """Whether the plot counts joules; without any, it counts CPU seconds."""
    return facts.provenance is not Provenance.MISSING


def against_today(facts: Facts) -> bool:
    """Whether quality is plotted as the paired difference to the baseline (up is better), or as it is.

    Stages judge different numbers of items; only the paired differences compare across them.
    """
    judged = [t for t in facts.trials if t.costs.quality or t.drop]
    return bool(facts.baseline_settings) and all(
        t.drop or same(t.settings, facts.baseline_settings) for t in judged
    )


def lower_is_better(facts: Facts) -> bool:
    """Whether the metric as it is (a perplexity, say) is the better the lower it is."""
    return any(t.costs.quality.lower_is_better for t in facts.trials if t.costs.quality)


def points(facts: Facts) -> list[Point]:
    """All trials, with the baseline and the winner told apart, in drawing order."""
    found = [_of_trial(trial, facts) for trial in facts.trials]
    for kind, profile in (("baseline", facts.baseline), ("best", facts.best)):
        if profile is not None and not (kind == "best" and same(profile.settings, facts.baseline_settings)):
            found = _marked(found, kind, profile.settings, _of_profile(kind, profile, facts))
    if facts.baseline is None:
        found = _marked(found, "baseline", facts.baseline_settings, None)
    return sorted(found, key=lambda p: (KINDS.index(p.kind), p.x.value if p.x else 0.0))


def _marked(found: list[Point], kind: str, settings: Mapping[str, Any], full: Point | None) -> list[Point]:
    """Mark the last trial with these settings; a profile of them, measured in full, takes its place."""
    twins = [i for i, p in enumerate(found) if same(p.settings, settings) and p.kind in ("final", "trial")]
    if not twins:
        return [*found, full] if full else found
    at = max(twins, key=lambda i: (found[i].kind == "final", i))
    twin = found[at]
    mark = replace(full, row=twin.row, y=full.y or twin.y) if full else replace(twin, kind=kind)
    return [*found[:at], mark, *found[at + 1 :]]


def _of_trial(trial: Trial, facts: Facts) -> Point:
    kind = "pruned" if trial.state != "complete" else "final" if trial.stage == "final" else "trial"
    lines = [f"Trial {trial.number}: {trial.state}, {trial.stage}", trial.label]
    if trial.reason:
        lines.append(f"Reason: {trial.reason}")
    if trial.state != "failed":
        lines += _lines(trial.costs)
    if trial.drop:
        lines.append(f"Against today: {words.drop(trial.drop, words.metric_of(facts))}")
    y = _y(trial.costs.quality, trial.drop, same(trial.settings, facts.baseline_settings), facts)
    return Point(kind, _x(trial.costs, trial.ratio, facts), y, "\n".join(lines), trial.row, trial.settings)


def _of_profile(kind: str, profile: Profile, facts: Facts) -> Point:
    title = (
        "What you run today" if kind == "baseline" else "Recommended" if facts.recommends else "Best found"
    )
    ratio = profile.ratio or (facts.verdict.ratio if facts.verdict else None) if kind == "best" else None
    y = _y(profile.costs.quality, facts.drop_of(profile), kind == "baseline", facts)
    lines = [title, profile.label, *_lines(profile.costs)]
    if ratio:
        what = "Joules" if facts.counts_joules else "CPU time"
        lines.append(f"{what} against today: {words.times(ratio)} less")
    text = "\n".join(lines)
    return Point(kind, _x(profile.costs, ratio, facts), y, text, None, profile.settings)


def _x(costs: Costs, ratio: Interval | None, facts: Facts) -> Interval | None:
    """Energy or CPU seconds per token; the bar is the comparison's uncertainty and not the scale's.

    A shared host drifts, so a figure is the baseline's over the ratio that was measured beside it,
    where there is one. An estimate's own band (which power model is right) moves all points
    together, so it is told in the caption.
    """
    value = _cost(costs, facts)
    base = _cost(facts.baseline.costs, facts) if facts.baseline else None
    if ratio and ratio.value > 0 and (base or value):
        middle = base / ratio.value if base else value
        assert middle is not None
        if ratio.low and ratio.high and ratio.low > 0:  # times fewer: its upper end is the lower cost
            return Interval(middle, middle * ratio.value / ratio.high, middle * ratio.value / ratio.low)
        return Interval(middle)
    if value is None:
        return None
    if in_joules(facts) and costs.energy.provenance < Provenance.ESTIMATED:
        return Interval(value, costs.energy.low_j, costs.energy.high_j)
    return Interval(value)


def _cost(costs: Costs, facts: Facts) -> float | None:
    value = costs.energy.value_j if in_joules(facts) else costs.cpu_s_per_token
    return value if value and value > 0 else None


def _y(quality: Quality | None, drop: Drop | None, is_baseline: bool, facts: Facts) -> Interval | None:
    if not against_today(facts):
        return quality.score if quality else None
    if is_baseline:
        return Interval(0.0)
    if drop is None:
        return None
    low, high = (None if end is None else -end for end in (drop.high, drop.low))
    return Interval(-drop.mean, low, high)


def _lines(costs: Costs) -> list[str]:
    speed = (
        words.NOT_MEASURED if costs.tokens_per_s is None else f"{words.figure(costs.tokens_per_s)} tokens/s"
    )
    return [
        f"Energy per token: {words.joules(costs.energy)}",
        f"CPU time per token: {words.quantity(costs.cpu_s_per_token, 's')}",
        f"Quality: {words.quality(costs.quality)}",
        f"First token, p95: {words.milliseconds(costs.ttft_p95_ms)}",
        f"Next token, p95: {words.milliseconds(costs.tpot_p95_ms)}",
        f"Speed: {speed}",
        f"Peak memory: {words.memory(costs.memory_bytes)}",
    ]


def frontier(facts: Facts, found: Sequence[Point]) -> list[Point]:
    """The points that nothing beats in both cost and quality, cheapest first.

    Of the run's own frontier where it has one, with what is run today and what is recommended; else of
    what was measured best. A configuration that reached the final counts with its final figures only.
    """
    placed = [p for p in found if p.x and p.y and p.kind != "pruned"]
    finals = [p for p in placed if p.kind != "trial"]
    placed = [p for p in placed if p.kind != "trial" or not any(same(p.settings, f.settings) for f in finals)]
    own = [p for p in placed if any(same(p.settings, s) for s in facts.frontier)]
    pool = [p for p in placed if p in own or p.kind in ("baseline", "best")] if own else placed
    sign = -1.0 if lower_is_better(facts) and not against_today(facts) else 1.0
    kept: list[Point] = []
    best = float("-inf")
    for point in sorted(pool, key=lambda p: (p.x.value, -sign * p.y.value) if p.x and p.y else (0.0, 0.0)):
        assert point.y is not None
        if sign * point.y.value > best:
            kept.append(point)
            best = sign * point.y.value
    return kept


def limit(facts: Facts) -> float | None:
    """The worst quality that the constraints allow, on the plot's axis."""
    most = number(facts.manifest, "constraints", "max_quality_drop")
    if most is None:
        return None
    if against_today(facts):
        return -most
    quality = facts.baseline.costs.quality if facts.baseline else None
    if quality is None:
        return None
    return quality.score.value + (most if lower_is_better(facts) else -most)
