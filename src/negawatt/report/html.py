"""The report as one self-contained HTML page: styles, script and drawings inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from negawatt import __version__
from negawatt.energy import Provenance
from negawatt.report import bars, columns, words
from negawatt.report.answer import answer
from negawatt.report.facts import Facts
from negawatt.report.pareto import pareto
from negawatt.report.points import against_today, in_joules, points
from negawatt.report.reading import text
from negawatt.report.records import Trial, same
from negawatt.report.svg import element

_LEGEND = {
    "best": ("recommended", "M10 2l8 8-8 8-8-8z"),
    "baseline": ("what you run today", "M4 4h12v12h-12z"),
    "final": ("measured in the final, in pairs", "M5 10a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"),
    "trial": ("measured in the search", "M6 10a4 4 0 1 0 8 0a4 4 0 1 0-8 0z"),
    "pruned": ("dropped early", "M10 14l-4.5-8h9z"),
    "failed": ("failed", "M6 6l8 8m0-8l-8 8"),
}


def page(facts: Facts) -> str:
    """Render a run as an HTML document.

    All text from the run is escaped, and a content security policy names the page's own script and
    style by hash, so that nothing a model or workload is called can run or load anything.
    """
    style, script = source("page.css"), source("page.js")
    wide, narrow = pareto(facts, 900, 500), pareto(facts, 370, 430)
    saving = facts.verdict.saving if facts.verdict and facts.recommends else None
    profiles = columns.profiles(facts)
    return _template().render(
        facts=facts,
        answer=answer(facts),
        version=__version__,
        when=_when(facts),
        style=Markup(style),  # noqa: S704  our own file, named by hash in the policy
        script=Markup(script),  # noqa: S704
        style_hash=hash_of(style),
        script_hash=hash_of(script),
        saving_bar=bars.saving_bar(saving) if saving and saving.value > 0 else "",
        saving_doubt=saving is not None and saving.low is not None and saving.high is not None,
        pareto={"wide": wide, "narrow": narrow} if wide else None,
        legend=_legend(facts),
        glyphs={kind: _glyph(kind) for kind in _LEGEND},
        caption=caption(facts),
        phases=columns.phase_rows(facts),
        phase_bars=bars.phase_bars(facts),
        profile_names=[name for name, _ in profiles],
        per_request=columns.request_tokens(facts) is not None,
        step_unit=columns.step_unit(facts),
        waterfall=list(
            zip(
                columns.step_rows(facts),
                bars.waterfall_bars(facts.waterfall, "J" if facts.counts_joules else "s of CPU time"),
                strict=False,
            )
        ),
        profiles=profiles,
        profile_rows=columns.profile_rows,
        columns=columns.COLUMNS,
        sort_key=columns.sort_key,
        row_class=lambda trial: _row_class(trial, facts),
        metric=words.metric_of(facts),
        method=columns.method_rows(facts),
        drift_line=bars.drift_line(facts.reference),
        warnings=columns.all_warnings(facts),
        machine=columns.machine_rows(facts),
        command=columns.command(facts),
        origin=columns.origin_rows(facts),
    )


def standalone(facts: Facts) -> str:
    """The Pareto plot alone, as an SVG document that follows the reader's light or dark scheme."""
    plot = pareto(facts, 900, 500, links=False)
    return str(plot).replace(">", f"><style>{source('page.css')}</style>", 1) + "\n"


def caption(facts: Facts) -> str:
    """How to read the plot: what its bars and axes mean."""
    parts = ["Left is cheaper, up is better; the line joins what nothing else beats in both."]
    if against_today(facts):
        parts.append("Quality is compared with today’s item by item; bars show what that leaves open (95 %).")
        parts.append("A point with an arrow lies below the edge.")
    else:
        parts.append("Bars are 95 % intervals.")
    if not in_joules(facts):
        profile = facts.best or facts.baseline
        energies = [profile.costs.energy] if profile else [t.costs.energy for t in facts.trials]
        reason = next((e.reason for e in energies if e.reason), "no reason given")
        parts.append(f"Energy is not measured ({reason}), so the plot counts CPU time.")
    elif facts.provenance is Provenance.ESTIMATED:
        parts.append(
            "Joules are estimated; another power model would move all points left or right together,"
            " not against each other."
        )
    return " ".join(parts)


def _row_class(trial: Trial, facts: Facts) -> str:
    if trial.state == "failed":
        return "failed"
    return "best" if trial.stage == "final" and same(trial.settings, words.best_settings(facts)) else ""


def _legend(facts: Facts) -> list[tuple[str, str]]:
    seen = {"failed" if p.x is None else p.kind for p in points(facts)}
    return [(kind, name) for kind, (name, _) in _LEGEND.items() if kind in seen]


def _glyph(kind: str) -> Markup:
    mark = element("path", d=_LEGEND[kind][1], class_="mark")
    return element("svg", element("g", mark, class_=f"pt {kind}"), viewBox="0 0 20 20", aria_hidden="true")


def _when(facts: Facts) -> str:
    created = text(facts.manifest.get("created"))
    return created[:16].replace("T", " ") if len(created) >= 16 else created


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source("page.html.jinja"))


@cache
def source(name: str, package: str = "negawatt.report") -> str:
    """A file of ours that goes into a page."""
    return files(package).joinpath(name).read_text("utf-8")


def hash_of(text: str) -> Markup:
    """How a content security policy names a script or style that is in the page."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup("'sha256-{}'").format(digest)
