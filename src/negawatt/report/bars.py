"""Bars without text of their own: they stretch to any width, the words beside them are real text."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from negawatt.report.facts import Facts, Interval, Profile, Step
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
    words = f"Of today's energy per token {100 * spent:.0f} % is still spent, {100 * saving.value:.0f} % is not."
    return _bar(*parts, height=height, label=words, class_="bar hero")


def phase_bars(facts: Facts) -> list[tuple[str, Markup]]:
    """One stacked bar a profile, prefill and decode of a token on one scale; empty without phases."""
    profiles = [("today", facts.baseline), ("recommended", facts.best)]
    if facts.kind == "profile":
        profiles = [("this profile", facts.best)]
    kept = [(name, _per_token(p)) for name, p in profiles if p is not None]
    whole = max((sum(parts) for _, parts in kept), default=0.0)
    if whole <= 0:
        return []
    return [(name, _stack(name, parts, whole)) for name, parts in kept if sum(parts) > 0]


def _per_token(profile: Profile) -> list[float]:
    found = {p.name: p.cpu_s or 0.0 for p in profile.phases}
    return [found.get("prefill", 0.0), found.get("decode", 0.0)]


def _stack(name: str, parts: Sequence[float], whole: float) -> Markup:
    start, shapes = 0.0, []
    for class_, part in zip(("prefill", "decode"), parts, strict=True):
        shapes.append(_rect(start, start + part / whole, class_, 22))
        start += part / whole
    label = f"{name}: prefill {parts[0]:.3g} s, decode {parts[1]:.3g} s of CPU time per token"
    return _bar(*shapes, height=22, label=label)


def waterfall_bars(steps: Sequence[Step]) -> list[tuple[Step, float | None, Markup]]:
    """(step, change against the step before, bar): the first and last levels full, the changes floating."""
    whole = max((s.cpu_s_per_token for s in steps), default=0.0)
    if whole <= 0:
        return []
    rows: list[tuple[Step, float | None, Markup]] = []
    for i, step in enumerate(steps):
        level = step.cpu_s_per_token / whole
        if i == 0:
            shapes, change = [_rect(0, level, "today", 22)], None
        else:
            before = steps[i - 1].cpu_s_per_token
            change = step.cpu_s_per_token - before
            shapes = [_rect(0, min(level, before / whole), "rest", 22)]
            shapes.append(_rect(before / whole, level, "fall" if change <= 0 else "rise", 22))
        label = f"{step.label}: {step.cpu_s_per_token:.3g} s of CPU time per token"
        rows.append((step, change, _bar(*shapes, height=22, label=label)))
    return rows


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

    path = "".join(f"{'L' if i else 'M'}{t / end * _WIDTH:.1f} {y(c):.1f}" for i, (t, c) in enumerate(reference))
    shapes = (
        element("path", d=f"M0 {y(middle):.1f}H{_WIDTH:.0f}", class_="median"),
        element("path", d=path, class_="drift"),
    )
    label = f"The reference load took {100 * values[0] / middle:.0f} to {100 * values[-1] / middle:.0f} % of its median"
    return _bar(join(shapes), height=height, label=label, class_="bar spark")
