"""The Pareto plot: energy per token against quality, every trial a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from negawatt.energy import Provenance
from negawatt.report import words
from negawatt.report.facts import Facts
from negawatt.report.points import (
    Point,
    against_today,
    frontier,
    in_joules,
    limit,
    lower_is_better,
    points,
)
from negawatt.report.records import Interval, is_share
from negawatt.report.svg import Box, Scale, element, join, place

_LEFT, _RIGHT, _TOP, _BOTTOM, _LANE = 46.0, 12.0, 34.0, 50.0, 36.0
_LETTER = 9.6  # pixels of a letter of a bold label, in the widest of the fonts that browsers choose
_LABEL = "Energy per token against quality, every trial a point; the table of trials has the same figures"


_DEPTH = 5.0
"""How many times the allowed quality drop the plot reaches down."""


@dataclass(frozen=True)
class _Canvas:
    """Scales and extents shared by the layers of one drawing."""

    facts: Facts
    points: Sequence[Point]
    x: Scale
    y: Scale
    area: Box
    width: float
    height: float
    links: bool

    @property
    def narrow(self) -> bool:
        return self.width < 500

    @property
    def right(self) -> float:
        return self.area.x + self.area.width

    @property
    def bottom(self) -> float:
        return self.area.y + self.area.height

    def at(self, point: Point) -> tuple[float, float]:
        """Pixels of a point that has both coordinates."""
        assert point.x is not None and point.y is not None
        y = self.bottom - 22 if self.is_beyond(point) else self.y(point.y.value)
        return self.x(point.x.value), y

    def is_beyond(self, point: Point) -> bool:
        """Whether the point lies below the plot; it is drawn just inside, with an arrow."""
        return point.y is not None and self.y(point.y.value) > self.bottom

    @property
    def placed(self) -> list[Point]:
        return [p for p in self.points if p.x and p.y]


def pareto(facts: Facts, width: int, height: int, *, links: bool = True) -> Markup:
    """Draw the plot as an ``<svg>``; empty when no trial has both a cost and a quality.

    Args:
        width, height: of the drawing in pixels; text keeps its size, so draw one for each width of screen.
        links: make every point a link to its row, ``#trial-ROW``, reachable by keyboard.
    """
    found = points(facts)
    placed = [p for p in found if p.x and p.y]
    if facts.kind == "profile" or all(p.kind == "baseline" for p in placed):
        return Markup("")
    lanes = _LANE * (any(p.x and not p.y for p in found) + any(not p.x for p in found))
    area = Box(_LEFT, _TOP, width - _LEFT - _RIGHT, height - _TOP - _BOTTOM - lanes)
    worst = limit(facts)
    ys = [v for p in placed for v in _shown(p)] + ([] if worst is None else [worst])
    if worst is not None and against_today(facts):  # what is far worse than allowed sits on the lower edge
        ys = [max(v, _DEPTH * worst) for v in ys]
    falling = lower_is_better(facts) and not against_today(facts)
    x = Scale.fit([p.x.value for p in found if p.x], area.x, area.x + area.width, may_log=True)
    y = Scale.fit(ys, area.y + area.height, area.y, may_log=falling)
    if falling:  # better is up on every plot
        y = replace(y, start=y.end, end=y.start)
    canvas = _Canvas(facts, found, x, y, area, float(width), float(height), links)
    layers = [_grid(canvas), _refused(canvas, worst), _front(canvas), _lanes(canvas)]
    layers += [_mark(canvas, p, *canvas.at(p)) for p in canvas.placed]
    return element(
        "svg",
        *layers,
        _labels(canvas),
        viewBox=f"0 0 {width} {height}",
        class_="pareto narrow" if canvas.narrow else "pareto wide",
        role="group",
        aria_label=_LABEL,
        xmlns="http://www.w3.org/2000/svg",
    )


def _shown(point: Point) -> list[float]:
    """The values that the quality axis must hold: of the search's quick looks only the middle."""
    assert point.y is not None
    ends = () if point.kind in ("trial", "pruned") else (point.y.low, point.y.high)
    return [v for v in (point.y.value, *ends) if v is not None]


def _text(words_: str, x: float, y: float, class_: str, anchor: str | None = None) -> Markup:
    return element("text", words_, x=x, y=y, class_=class_, text_anchor=anchor)


def _grid(c: _Canvas) -> Markup:
    area = c.area
    parts = [element("rect", x=area.x, y=area.y, width=area.width, height=area.height, class_="plate")]
    ticks = c.x.ticks(6 if c.narrow else 9)
    factor, letter = words.prefix(ticks[len(ticks) // 2] if ticks else c.x.high)
    for tick in ticks:
        x = c.x(tick)
        parts.append(element("line", x1=x, x2=x, y1=area.y, y2=c.bottom, class_="grid"))
        parts.append(_text(words.figure(tick / factor), x, c.height - 28, "tick", "middle"))
    scale = 100.0 if is_share(words.metric_of(c.facts)) else 1.0
    for tick in replace(c.y, low=c.y.low * scale, high=c.y.high * scale).ticks(6):
        y = c.y(tick / scale)
        sign = "+" if against_today(c.facts) and tick > 0 else ""
        parts.append(element("line", x1=area.x, x2=c.right, y1=y, y2=y, class_="grid"))
        parts.append(_text(sign + words.figure(tick), area.x - 7, y + 4, "tick", "end"))
    parts.append(_text(_y_name(c), 2.0, 18.0, "axis"))
    parts.append(_text(_x_name(c, letter), c.right, c.height - 7, "axis", "end"))
    return element("g", join(parts), aria_hidden="true")


def _x_name(c: _Canvas, letter: str) -> str:
    what = "energy per token" if in_joules(c.facts) else "CPU time per token"
    unit = "J" if in_joules(c.facts) else "s"
    estimated = " (estimated)" if c.facts.provenance is Provenance.ESTIMATED else ""
    log = ", log scale" if c.x.log else ""
    return f"{what}{'' if c.narrow else estimated}, {letter}{unit}{log} →"


def _y_name(c: _Canvas) -> str:
    metric = words.metric_of(c.facts)
    if not against_today(c.facts):
        if lower_is_better(c.facts):
            return f"↑ {metric}, turned over: lower is better"
        return f"↑ {metric}" + (", %" if is_share(metric) else "")
    quality = c.facts.baseline.costs.quality if c.facts.baseline else None
    unit = "%" if is_share(metric) else ""
    base = f" {words.score(quality.score.value, quality)} {unit}".rstrip() if quality else ""
    return f"↑ {metric} against today’s{base}" + (", points" if unit else "")


def _refused(c: _Canvas, worst: float | None) -> Markup:
    if worst is None:
        return Markup("")
    y = c.y.clip(worst)
    band = element("rect", x=c.area.x, y=y, width=c.area.width, height=c.bottom - y, class_="refused")
    line = element("line", x1=c.area.x, x2=c.right, y1=y, y2=y, class_="limit")
    label = _text("worse than you allow", c.right - 6, c.bottom - 8, "note", "end")
    return element("g", band, line, label, aria_hidden="true")


def _front(c: _Canvas) -> Markup:
    path = ""
    for i, point in enumerate(frontier(c.facts, c.points)):
        x, y = c.at(point)
        path += f"H{x:.1f}V{y:.1f}" if i else f"M{x:.1f} {c.bottom:.1f}V{y:.1f}"
    return element("path", d=f"{path}H{c.right:.1f}", class_="front", aria_hidden="true")


def _lanes(c: _Canvas) -> Markup:
    """Rows below the plot for trials without a place on it: no quality measured, or failed."""
    rows = (
        ("cost known, quality not measured", [p for p in c.points if p.x and not p.y]),
        ("failed: neither known", [p for p in c.points if not p.x]),
    )
    top, parts = c.bottom, list[Markup]()
    for name, found in rows:
        if not found:
            continue
        y = top + 24
        parts.append(element("line", x1=c.area.x, x2=c.right, y1=top + _LANE, y2=top + _LANE, class_="lane"))
        parts.append(_text(name, c.area.x + 4, top + 12, "note"))
        step = min(20.0, c.area.width / (len(found) + 1))
        for i, point in enumerate(found):
            x = c.x(point.x.value) if point.x else c.area.x + 12 + i * step
            parts.append(_mark(c, point, x, y))
        top += _LANE
    return join(parts)


def _mark(c: _Canvas, point: Point, x: float, y: float) -> Markup:
    failed = point.x is None
    shapes = {
        "baseline": f"M{x - 7:.1f} {y - 7:.1f}h14v14h-14z",
        "best": f"M{x:.1f} {y - 10:.1f}l10 10-10 10-10-10z",
        "final": _circle(x, y, 5.5),
        "trial": _circle(x, y, 4.0),
        "pruned": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8" if failed else f"M{x:.1f} {y + 4:.1f}l-4.5-8h9z",
    }
    parts = [element("title", point.words)]
    if point.x and point.y:
        parts += [] if c.is_beyond(point) else _whiskers(c, point.x, point.y)
        if c.is_beyond(point):
            parts.append(element("path", d=f"M{x:.1f} {y + 8:.1f}v9m-4-4l4 4 4-4", class_="beyond"))
    parts.append(element("circle", cx=x, cy=y, r=13, class_="hit"))
    parts.append(element("path", d=shapes[point.kind], class_="mark"))
    kind = "failed" if failed else point.kind
    if not c.links:
        return element("g", *parts, class_=f"pt {kind}")
    target = "#trials" if point.row is None else f"#trial-{point.row}"
    return element("a", *parts, class_=f"pt {kind}", href=target)


def _circle(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"


def _ends(interval: Interval, scale: Scale) -> tuple[float, float] | None:
    if interval.low is None or interval.high is None:
        return None
    return scale.clip(interval.low), scale.clip(interval.high)


def _whiskers(c: _Canvas, x: Interval, y: Interval) -> list[Markup]:
    parts = []
    if ends := _ends(x, c.x):
        parts.append(element("path", d=f"M{ends[0]:.1f} {c.y(y.value):.1f}H{ends[1]:.1f}", class_="whisker"))
    if ends := _ends(y, c.y):
        parts.append(element("path", d=f"M{c.x(x.value):.1f} {ends[0]:.1f}V{ends[1]:.1f}", class_="whisker"))
    return parts


def _obstacles(c: _Canvas) -> list[Box]:
    """What a label should not cover: marks, the whiskers always shown, the frontier, the note."""
    boxes = [Box(c.right - 140, c.bottom - 24, 140, 24)]
    for point in c.placed:
        x, y = c.at(point)
        boxes.append(Box(x - 9, y - 9, 18, 18))
        if point.kind in ("final", "baseline", "best") and point.y and (ends := _ends(point.y, c.y)):
            boxes.append(Box(x - 2, min(ends), 4, abs(ends[1] - ends[0])))
    corners = [c.at(p) for p in frontier(c.facts, c.points)]
    for (x, y), (x_next, y_next) in (
        zip(corners, [*corners[1:], (c.right, corners[-1][1])], strict=True) if corners else ()
    ):
        boxes.append(Box(x, y - 2, x_next - x, 4))
        boxes.append(Box(x_next - 2, min(y, y_next), 4, abs(y - y_next)))
    return boxes


def _labels(c: _Canvas) -> Markup:
    taken, parts = _obstacles(c), list[Markup]()
    best = "recommended" if c.facts.recommends else "best found"
    for kind, name in (("best", best), ("baseline", "today")):
        for point in (p for p in c.placed if p.kind == kind):
            shown = f"{name}, {_short(point, c.facts)}"
            box = place(len(shown) * _LETTER, 18, c.at(point), taken, c.area)
            taken.append(box)
            parts.append(_text(shown, box.x + box.width / 2, box.y + 13.5, f"name {kind}", "middle"))
    return element("g", join(parts), aria_hidden="true")


def _short(point: Point, facts: Facts) -> str:
    assert point.x is not None
    if not in_joules(facts):
        return words.quantity(point.x.value, "s")
    estimated = facts.provenance is Provenance.ESTIMATED
    return ("~" if estimated else "") + words.quantity(point.x.value, "J", 2 if estimated else 3)
