"""Bars without text of their own: they stretch to any width, the words beside them are real text."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from negawatt.report.columns import profiles, request_tokens
from negawatt.report.facts import Facts
from negawatt.report.records import Interval, Step
from negawatt.report.svg import element, join

_WIDTH = 1000.0


def _bar(*children: Markup, height: int, label: str, class_: str = "bar") -> Markup:
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {_WIDTH:.0f} {height}",
        preserveAspectRatio="none",
        class_=class_,
        role="img",
        aria_label=label,
    )


def _rect(start: float, end: float, class_: str, height: int, y: int = 0) -> Markup:
    """A rectangle between two shares of the width, in any order."""
    left, right = sorted((min(max(start, 0.0), 1.0), min(max(end, 0.0), 1.0)))
    return element("rect", x=left * _WIDTH, y=y, width=(right - left) * _WIDTH, height=height, class_=class_)


def saving_bar(saving: Interval) -> Markup:
    """What today costs, as one bar: the part still spent, the part never spent, the doubt between."""
    height, spent = 40, 1.0 - saving.value
    parts = [_rect(0, 1, "never", height), _rect(0, spent, "spent", height)]
    if saving.low is not None and saving.high is not None:
        parts.append(_rect(1 - saving.high, 1 - saving.low, "doubt", height))
    words = (
        f"Of today's energy per token {100 * spent:.0f} % is still spent, {100 * saving.value:.0f} % is not."
    )
    return _bar(*parts, height=height, label=words, class_="bar hero")


def phase_bars(facts: Facts) -> list[tuple[str, Markup]]:
    """One stacked bar a profile, prefill and decode of a request on one scale.

    Empty where the phases, or the tokens of a request, are not known.
    """
    request = request_tokens(facts)
    if request is None:
        return []
    kept = []
    for name, profile in profiles(facts):
        cost = {p.name: p.cpu_s or 0.0 for p in profile.phases}
        kept.append((name, [cost.get("prefill", 0.0) * request[0], cost.get("decode", 0.0) * request[1]]))
    whole = max((sum(parts) for _, parts in kept), default=0.0)
    return [(name, _stack(name, parts, whole)) for name, parts in kept] if whole > 0 else []


def _stack(name: str, parts: Sequence[float], whole: float) -> Markup:
    start, shapes = 0.0, []
    for class_, part in zip(("prefill", "decode"), parts, strict=True):
        shapes.append(_rect(start, start + part / whole, class_, 22))
        start += part / whole
    label = f"{name}: prefill {parts[0]:.3g} s, decode {parts[1]:.3g} s of CPU time a request"
    return _bar(*shapes, height=22, label=label)


def waterfall_bars(steps: Sequence[Step], unit: str = "s of CPU time") -> list[Markup]:
    """A bar a step: what is left, and floating at its end what the step saved or added."""
    levels = [step.per_token for step in steps]
    whole = max(levels, default=0.0)
    if whole <= 0:
        return []
    bars = []
    for i, level in enumerate(levels):
        before = levels[i - 1] if i else level
        shapes = [_rect(0, min(level, before) / whole, "rest" if i else "today", 22)]
        shapes.append(_rect(level / whole, before / whole, "fall" if level <= before else "rise", 22))
        bars.append(_bar(*shapes, height=22, label=f"{steps[i].label}: {level:.3g} {unit} per token"))
    return bars


def drift_line(reference: Sequence[tuple[float, float]]) -> Markup:
    """How long the fixed reference load took over the run, against its median; empty below 3 points."""
    if len(reference) < 3:
        return Markup("")
    values = sorted(c for _, c in reference)
    middle, end = values[len(values) // 2], reference[-1][0] or 1.0
    low, high = min(values[0] / middle, 0.9), max(values[-1] / middle, 1.1)
    height = 60

    def y(cpu_s: float) -> float:
        return height - (cpu_s / middle - low) / (high - low) * height

    path = "".join(
        f"{'L' if i else 'M'}{t / end * _WIDTH:.1f} {y(c):.1f}" for i, (t, c) in enumerate(reference)
    )
    shapes = (
        element("path", d=f"M0 {y(middle):.1f}H{_WIDTH:.0f}", class_="median"),
        element("path", d=path, class_="drift"),
    )
    low_end, high_end = 100 * values[0] / middle, 100 * values[-1] / middle
    label = f"The reference load took {low_end:.0f} to {high_end:.0f} % of its median"
    return _bar(join(shapes), height=height, label=label, class_="bar spark")
