"""The Pareto plot: energy per token against quality, every trial a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from negawatt.energy import Energy, Provenance
from negawatt.report import words
from negawatt.report.facts import Costs, Facts, Interval, Profile, Trial, number
from negawatt.report.svg import Box, Scale, element, join, place

_LEFT, _RIGHT, _TOP, _BOTTOM, _LANE = 52.0, 14.0, 40.0, 50.0, 28.0


@dataclass(frozen=True)
class Point:
    """A trial or profile on the plot.

    Attributes:
        kind: baseline, best, final, trial, or pruned.
        x: energy (J) or CPU seconds per token; None when the trial failed before it was known.
        y: quality; None when it was not measured.
        words: what the tooltip says, one fact a line, the first line its title.
        row: number of the trial in the table, or None.
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


def points(facts: Facts) -> list[Point]:
    """All trials, with the baseline and the winner told apart, in drawing order."""
    found = [_trial_point(trial, facts) for trial in facts.trials]
    for kind, profile in (("baseline", facts.baseline), ("best", facts.best)):
        if profile is not None:
            found = _marked(found, kind, _profile_point(kind, profile, facts))
    if facts.baseline is None and facts.baseline_settings:
        found = _marked(found, "baseline", None, facts.baseline_settings)
    order = ("pruned", "trial", "final", "baseline", "best")
    return sorted(found, key=lambda p: (order.index(p.kind), p.x.value if p.x else 0.0))


def _marked(
    found: list[Point], kind: str, profile: Point | None, settings: Mapping[str, Any] | None = None
) -> list[Point]:
    """Give the last trial of the same settings the mark; its profile, measured in full, takes its place."""
    wanted = profile.settings if profile else settings or {}
    twins = [i for i, p in enumerate(found) if words.same(p.settings, wanted) and p.kind in ("final", "trial")]
    if not twins:
        return [*found, profile] if profile else found
    twin = max(twins, key=lambda i: (found[i].kind == "final", i))
    mark = replace(profile, row=found[twin].row) if profile else replace(found[twin], kind=kind)
    return [*found[:twin], mark, *found[twin + 1 :]]


def _trial_point(trial: Trial, facts: Facts) -> Point:
    kind = "pruned" if trial.state != "complete" else "final" if trial.stage == "final" else "trial"
    y = trial.costs.quality.score if trial.costs.quality else None
    title = f"Trial {trial.number}, {trial.state}, stage {trial.stage}"
    lines = [title, trial.label, *([f"Reason: {trial.reason}"] if trial.reason else [])]
    if trial.state != "failed":
        lines += cost_lines(trial.costs)
    return Point(
        kind, _x(trial.costs, trial.ratio, facts), y, "\n".join(lines), trial.number, trial.settings
    )


def _profile_point(kind: str, profile: Profile, facts: Facts) -> Point:
    title = "What you run today" if kind == "baseline" else "Recommended"
    ratio = facts.verdict.ratio if facts.verdict and kind == "best" else None
    y = profile.costs.quality.score if profile.costs.quality else None
    text = "\n".join([title, profile.label, *cost_lines(profile.costs)])
    return Point(kind, _x(profile.costs, ratio, facts), y, text, None, profile.settings)


def _x(costs: Costs, ratio: Interval | None, facts: Facts) -> Interval | None:
    """Energy or CPU seconds per token, with the comparison's uncertainty and not the scale's.

    An estimate's own band (which power model is right) moves all points together, so it is told in
    the caption; the bar of a point spans what the interleaved comparison with the baseline left open.
    """
    energy = costs.energy
    value = energy.value_j if in_joules(facts) else costs.cpu_s_per_token
    if value is None or value <= 0:
        return None
    if ratio and ratio.low and ratio.high and ratio.value > 0 and ratio.low > 0:
        # the same relative width, whichever way round the ratio is written
        return Interval(value, value * ratio.low / ratio.value, value * ratio.high / ratio.value)
    if in_joules(facts) and energy.provenance < Provenance.ESTIMATED:
        return Interval(value, energy.low_j, energy.high_j)
    return Interval(value)


def cost_lines(costs: Costs) -> list[str]:
    """What a tooltip says about costs, one fact a line."""
    return [
        f"Energy per token: {words.joules(costs.energy)}",
        f"CPU time per token: {words.quantity(costs.cpu_s_per_token, 's')}",
        f"Quality: {words.quality(costs.quality)}",
        f"First token (p95): {words.milliseconds(costs.ttft_p95_ms)}",
        f"Each further token (p95): {words.milliseconds(costs.tpot_p95_ms)}",
        f"Speed: {words.figure(costs.tokens_per_s)} tokens/s" if costs.tokens_per_s else "Speed: not measured",
        f"Peak memory: {words.memory(costs.memory_bytes)}",
    ]


def frontier(facts: Facts, found: list[Point]) -> list[Point]:
    """The points nothing beats in both energy and quality: the run's own frontier, else of what is known."""
    placed = [p for p in found if p.x and p.y and p.kind != "pruned"]
    listed = [p for p in placed if any(words.same(p.settings, s) for s in facts.frontier)]
    pool = listed or [p for p in placed if p.kind != "trial"] or placed
    sign = -1.0 if _lower_is_better(facts) else 1.0
    best: list[Point] = []
    for point in sorted(pool, key=lambda p: (p.x.value, -sign * p.y.value) if p.x and p.y else (0.0, 0.0)):
        assert point.y is not None
        if not best or best[-1].y is None or sign * point.y.value > sign * best[-1].y.value:
            best.append(point)
    return best


def _lower_is_better(facts: Facts) -> bool:
    return any(t.costs.quality.lower_is_better for t in facts.trials if t.costs.quality)


@dataclass(frozen=True)
class _Canvas:
    """Scales and extents shared by the layers of one drawing."""

    facts: Facts
    points: list[Point]
    x: Scale
    y: Scale
    area: Box
    width: float
    height: float
    links: bool

    @property
    def narrow(self) -> bool:
        return self.width < 500


def pareto(facts: Facts, width: int, height: int, *, links: bool = True) -> Markup:
    """Draw the plot as an ``<svg>``; an empty string when nothing can be placed on it.

    Args:
        width, height: of the drawing in pixels; text keeps its size, so draw one a screen width.
        links: make every point a link to its row, ``#trial-NUMBER``, reachable by keyboard.
    """
    found = points(facts)
    placed = [p for p in found if p.x and p.y]
    if not placed or facts.kind == "profile":
        return Markup("")
    lanes = _LANE * (any(p.x and not p.y for p in found) + any(not p.x for p in found))
    area = Box(_LEFT, _TOP, width - _LEFT - _RIGHT, height - _TOP - _BOTTOM - lanes)
    ys = [v for p in placed if p.y for v in (p.y.value, *(_ends(p.y) if p.kind != "trial" else ()))]
    limit = allowed(facts)
    x = Scale.fit([p.x.value for p in found if p.x], area.x, area.x + area.width, may_log=True)
    bottom, top = area.y + area.height, area.y
    may_log = _lower_is_better(facts)
    y = Scale.fit([*ys, *([limit] if limit is not None else [])], bottom, top, may_log=may_log)
    if may_log:  # better is up on every plot
        y = replace(y, start=top, end=bottom)
    canvas = _Canvas(facts, found, x, y, area, float(width), float(height), links)
    layers = (_grid(canvas), _limit(canvas, limit), _front(canvas), _lanes(canvas), _marks(canvas), _labels(canvas))
    name = "Energy per token against quality, every trial a point. The table of trials holds the same figures."
    return element(
        "svg",
        *layers,
        viewBox=f"0 0 {width} {height}",
        class_="pareto narrow" if canvas.narrow else "pareto wide",
        role="group",
        aria_label=name,
        xmlns="http://www.w3.org/2000/svg",
    )


def _ends(interval: Interval) -> tuple[float, ...]:
    return tuple(end for end in (interval.low, interval.high) if end is not None)


def allowed(facts: Facts) -> float | None:
    """The worst quality the constraints allow, on the axis of the plot."""
    most = number(facts.manifest, "constraints", "max_quality_drop")
    base = next((p for p in points(facts) if p.kind == "baseline" and p.y), None)
    if most is None or base is None or base.y is None:
        return None
    return base.y.value + most if _lower_is_better(facts) else base.y.value - most


def _grid(c: _Canvas) -> Markup:
    unit = "J" if in_joules(c.facts) else "s"
    bottom, right = c.area.y + c.area.height, c.area.x + c.area.width
    parts = [element("rect", x=c.area.x, y=c.area.y, width=c.area.width, height=c.area.height, class_="plate")]
    ticks = c.x.ticks(5 if c.narrow else 8)
    factor, letter = words.prefix(ticks[len(ticks) // 2] if ticks else c.x.high)
    for tick in ticks:
        parts.append(element("line", x1=c.x(tick), x2=c.x(tick), y1=c.area.y, y2=bottom, class_="grid"))
        label = words.figure(tick / factor)
        parts.append(element("text", label, x=c.x(tick), y=c.height - 26, text_anchor="middle", class_="tick"))
    sample = next(t.costs.quality for t in c.facts.trials if t.costs.quality) if _has_quality(c.facts) else None
    for tick in c.y.ticks(6):
        label = words.score(tick, sample) if sample else words.figure(100 * tick)
        label = label.removesuffix(".0")
        parts.append(element("line", x1=c.area.x, x2=right, y1=c.y(tick), y2=c.y(tick), class_="grid"))
        parts.append(
            element("text", label, x=c.area.x - 8, y=c.y(tick) + 4, text_anchor="end", class_="tick")
        )
    metric = words.metric_of(c.facts)
    y_name = metric + (", %" if words.is_share(metric) else " (lower is better)" if _lower_is_better(c.facts) else "")
    what = "energy per token" if in_joules(c.facts) else "CPU time per token"
    mark = ", estimated" if c.facts.provenance is Provenance.ESTIMATED else ""
    x_name = f"{what}, {letter}{unit}{mark}{' · log scale' if c.x.log else ''} → costs more"
    parts.append(element("text", f"↑ {y_name}", x=4.0, y=16.0, class_="axis"))
    parts.append(element("text", x_name, x=right, y=c.height - 6, text_anchor="end", class_="axis"))
    return element("g", join(parts), aria_hidden="true")


def _has_quality(facts: Facts) -> bool:
    return any(t.costs.quality for t in facts.trials)


def _limit(c: _Canvas, limit: float | None) -> Markup:
    if limit is None:
        return Markup("")
    y, bottom = c.y.clip(limit), c.area.y + c.area.height
    right = c.area.x + c.area.width
    band = element("rect", x=c.area.x, y=y, width=c.area.width, height=max(0.0, bottom - y), class_="refused")
    line = element("line", x1=c.area.x, x2=right, y1=y, y2=y, class_="limit")
    text = "worse than allowed"
    label = element("text", text, x=right - 6, y=min(y + 15, bottom - 5), text_anchor="end", class_="note")
    return element("g", band, line, label, aria_hidden="true")


def _front(c: _Canvas) -> Markup:
    front = frontier(c.facts, c.points)
    if not front:
        return Markup("")
    path, bottom = "", c.area.y + c.area.height
    for i, p in enumerate(front):
        assert p.x is not None and p.y is not None
        x, y = c.x(p.x.value), c.y(p.y.value)
        path += f"H{x:.1f}V{y:.1f}" if i else f"M{x:.1f} {bottom:.1f}V{y:.1f}"
    path += f"H{c.area.x + c.area.width:.1f}"
    return element("path", d=path, class_="front", aria_hidden="true")


def _lanes(c: _Canvas) -> Markup:
    """Trials that have no place on the plot: quality never measured, or failed."""
    bottom = c.area.y + c.area.height
    rows = (("no quality measured", [p for p in c.points if p.x and not p.y]), ("failed", [p for p in c.points if not p.x]))
    parts: list[Markup] = []
    for name, found in rows:
        if not found:
            continue
        y = bottom + _LANE / 2 + 3
        bottom += _LANE
        parts.append(element("line", x1=c.area.x, x2=c.area.x + c.area.width, y1=y, y2=y, class_="lane"))
        parts.append(element("text", name, x=c.area.x + c.area.width, y=y - 5, text_anchor="end", class_="note"))
        step = min(18.0, c.area.width / (len(found) + 1))
        for i, point in enumerate(found):
            x = c.x(point.x.value) if point.x else c.area.x + 10 + i * step
            parts.append(_mark(c, point, x, y))
    return join(parts)


def _marks(c: _Canvas) -> Markup:
    return join(_mark(c, p, c.x(p.x.value), c.y(p.y.value)) for p in c.points if p.x and p.y)


def _mark(c: _Canvas, point: Point, x: float, y: float) -> Markup:
    failed = point.x is None
    shapes = {
        "baseline": f"M{x - 7:.1f} {y - 7:.1f}h14v14h-14z",
        "best": f"M{x:.1f} {y - 10:.1f}l10 10-10 10-10-10z",
        "final": _circle(x, y, 5.5),
        "trial": _circle(x, y, 4),
        "pruned": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8" if failed else f"M{x:.1f} {y + 4:.1f}l-4.5-8h9z",
    }
    kind = "failed" if failed else point.kind
    parts = [element("title", point.words)]
    if point.x and point.y:
        parts += _whiskers(c, point, x, y)
    parts.append(element("circle", cx=x, cy=y, r=13, class_="hit"))
    parts.append(element("path", d=shapes[point.kind], class_="mark"))
    target = f"#trial-{point.row}" if point.row is not None else "#trials"
    if not c.links:
        return element("g", *parts, class_=f"pt {kind}")
    return element("a", *parts, class_=f"pt {kind}", href=target)


def _circle(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"


def _whiskers(c: _Canvas, point: Point, x: float, y: float) -> list[Markup]:
    parts = []
    assert point.x is not None and point.y is not None
    if point.x.low is not None and point.x.high is not None:
        ends = sorted((c.x.clip(point.x.low), c.x.clip(point.x.high)))
        parts.append(element("path", d=f"M{ends[0]:.1f} {y:.1f}H{ends[1]:.1f}", class_="whisker"))
    if point.y.low is not None and point.y.high is not None:
        ends = sorted((c.y.clip(point.y.low), c.y.clip(point.y.high)))
        parts.append(element("path", d=f"M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}", class_="whisker"))
    return parts


def _labels(c: _Canvas) -> Markup:
    taken = [Box(c.x(p.x.value) - 8, c.y(p.y.value) - 8, 16, 16) for p in c.points if p.x and p.y]
    parts = []
    for kind, text in (("best", "recommended"), ("baseline", "today")):
        point = next((p for p in c.points if p.kind == kind), None)
        if point is None or point.x is None or point.y is None:
            continue
        shown = f"{text} · {_short(point, c.facts)}"
        x, y = c.x(point.x.value), c.y(point.y.value)
        box = place(len(shown) * 7.1, 16, (x, y), taken, c.area)
        taken.append(box)
        parts.append(
            element("text", shown, x=box.x + box.width / 2, y=box.y + 12, text_anchor="middle", class_=f"name {kind}")
        )
    return element("g", join(parts), aria_hidden="true") if parts else Markup("")


def _short(point: Point, facts: Facts) -> str:
    assert point.x is not None
    if not in_joules(facts):
        return words.quantity(point.x.value, "s")
    if facts.provenance is Provenance.ESTIMATED:
        return f"~{words.quantity(point.x.value, 'J', 2)}"
    return words.joules(Energy.measured(point.x.value))
