"""The flame graph: one HTML page, complete in itself, in which width is joules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from negawatt import __version__
from negawatt.hotspots import table
from negawatt.hotspots.hotspots import Hotspots
from negawatt.hotspots.roles import folded, role_of
from negawatt.hotspots.spot import Spot
from negawatt.report.html import hash_of, source
from negawatt.report.svg import element, join

_ROW = 26
"""Pixels a level; a finger can hit it."""
_NARROWEST = 0.0005
"""Share of the whole below which a part gets no rectangle: less than a pixel on a wide screen."""
_LABELLED = 0.03
"""Share from which on a part carries its name even where no script runs."""
_PACKAGE = "negawatt.hotspots"


def page(hotspots: Hotspots) -> str:
    """Render hot-spots as an HTML document that opens anywhere without a network.

    All text is escaped, and a content security policy names the page's own script and style by hash.
    """
    style = source("page.css") + source("flame.css", _PACKAGE)
    script = source("flame.js", _PACKAGE)
    measured = hotspots.measurement
    roles = table.role_rows(hotspots)
    return _template().render(
        title=hotspots.title,
        version=__version__,
        style=Markup(style),  # noqa: S704  our own files, named by hash in the policy
        script=Markup(script),  # noqa: S704
        style_hash=hash_of(style),
        script_hash=hash_of(script),
        energy=str(measured.energy),
        known=measured.energy.value_j is not None,
        figures=_figures(hotspots),
        graph=graph(hotspots),
        role_head=table.ROLE_HEAD,
        roles=roles,
        spot_head=table.spot_head(hotspots),
        spots=table.spot_rows(hotspots, most=40),
        reason=measured.energy.reason,
        remarks=[*hotspots.notes, *measured.warnings],
    )


def graph(hotspots: Hotspots) -> Markup:
    """The graph alone: an SVG element as wide as its place, whose text does not stretch with it."""
    whole = folded(hotspots.whole)
    frames = list(_frames(whole, whole, hotspots, 0.0, 0))
    depth = 1 + max(level for level, _ in frames)
    return element(
        "svg",
        join(shape for _, shape in frames),
        class_="flame",
        width="100%",
        height=depth * _ROW,
        role="img",
        aria_label=f"Flame graph of {hotspots.title}: {hotspots.measurement.energy} in all",
    )


def _frames(
    spot: Spot, whole: Spot, hotspots: Hotspots, start: float, level: int
) -> Iterator[tuple[int, Markup]]:
    """A rectangle a part, level by level from the top; `start` and widths are shares of the whole."""
    wide = _width(spot, whole)
    if wide < _NARROWEST:
        return
    name = hotspots.title if spot.kind == "whole" else spot.name
    shown = name if wide >= _LABELLED else ""
    yield (
        level,
        element(
            "svg",
            element("rect", width="100%", height="100%"),
            element("text", shown, x=6, y=17),
            element("title", _words(spot, name, hotspots)),
            class_=f"frame {_colour(spot)}",
            x=f"{100 * start:.4f}%",
            y=level * _ROW,
            width=f"{100 * wide:.4f}%",
            height=_ROW - 1,
            data_name=name,
        ),
    )
    for part in spot.inside:
        yield from _frames(part, whole, hotspots, start, level + 1)
        start += _width(part, whole)


def _width(spot: Spot, whole: Spot) -> float:
    """Share of the whole: of its joules, or of its CPU time where no joules are known."""
    if whole.energy.value_j:
        return (spot.energy.value_j or 0.0) / whole.energy.value_j
    if spot.kind == "whole":
        return 1.0
    return spot.cpu_s / whole.cpu_s if whole.cpu_s > 0 else 0.0


def _colour(spot: Spot) -> str:
    if spot.kind == "module":
        return f"module {(role_of(spot) or 'other').lower()}"
    if spot.kind == "function":
        if spot.place.startswith(("<", "python/")):
            return "function built-in"
        return f"function {'library' if '-packages/' in spot.place else 'own'}"
    return spot.kind


def _words(spot: Spot, name: str, hotspots: Hotspots) -> str:
    lines = [name]
    if spot.place:
        lines.append(spot.place)
    of_all = table.share(spot.cpu_s, hotspots.whole.cpu_s)
    lines.append(
        f"{spot.energy}" + (f", {of_all} of the CPU time" if of_all and spot.kind != "whole" else "")
    )
    if spot.inside and spot.self_cpu_s > 0:
        lines.append(f"itself {spot.self_energy}")
    if spot.moved_bytes is not None:
        work = [f"{table.quantity(spot.moved_bytes)}B moved"]
        if spot.flops is not None:
            work.insert(0, f"{table.quantity(spot.flops)}FLOP")
        lines.append(", ".join(work))
    if spot.count:
        what = "samples" if hotspots.samples is not None else "calls"
        lines.append(f"{spot.count:,} {what}")
    return "\n".join(lines)


def _figures(hotspots: Hotspots) -> list[tuple[str, str, str]]:
    measured = hotspots.measurement
    figures = [
        (
            "Energy",
            str(measured.energy.provenance),
            "not shared" if measured.energy.is_missing else "shared by CPU time",
        ),
        ("CPU time", f"{measured.cpu_s:.2f} s", f"in {measured.duration_s:.2f} s"),
    ]
    dearest = next((s for s in hotspots.flat() if s.kind not in ("whole", "rest")), None)
    if dearest is not None:
        of_all = table.share(dearest.self_cpu_s, hotspots.whole.cpu_s)
        figures.append(("Dearest by itself", dearest.name, f"{dearest.self_energy}, {of_all}"))
    basis = f"{hotspots.samples:,} samples" if hotspots.samples is not None else "every call timed"
    figures.append(
        ("Shares rest on", basis, f"looking cost {hotspots.looking_cpu_s:.2f} CPU-seconds that were seen")
    )
    return figures


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source("page.html.jinja", _PACKAGE))
