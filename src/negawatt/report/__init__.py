"""Reports: a run as HTML, Markdown or JSON. Reads run folders and nothing else; start at `Facts`."""

from __future__ import annotations

from pathlib import Path

from negawatt.errors import RunError, UsageError
from negawatt.home import written_beside

FORMATS = {"html": ".html", "markdown": ".md", "json": ".json"}
"""Names of the formats, with the ending of their files."""

__all__ = ["FORMATS", "plot_svg", "render", "write"]


def render(run_path: Path | str, format: str = "html") -> str:
    """The report of a run, finished or not, as text.

    Args:
        run_path: the run folder.
        format: ``html``, ``markdown`` or ``json``.

    Raises:
        RunError: no run there, damaged, or written by a newer version.
        UsageError: no such format.
    """
    from negawatt.report.facts import Facts

    if format not in FORMATS:
        raise UsageError(f"a report is one of {', '.join(FORMATS)}, not {format!r}")
    facts = Facts.read(run_path)
    if format == "html":
        from negawatt.report.html import page

        return page(facts)
    if format == "markdown":
        from negawatt.report.markdown import markdown

        return markdown(facts)
    from negawatt.report.document import document

    return document(facts)


def plot_svg(run_path: Path | str) -> str:
    """The Pareto plot of a tune run alone, as an SVG document that follows light and dark.

    Raises:
        RunError: no run there, damaged, written by a newer version, or nothing in it can be plotted.
    """
    from negawatt.report.facts import Facts
    from negawatt.report.html import standalone
    from negawatt.report.pareto import pareto

    facts = Facts.read(run_path)
    if not pareto(facts, 900, 500):
        raise RunError(f"{run_path} has no plot: no trial in it has both a cost and a quality")
    return standalone(facts)


def write(run_path: Path | str, format: str = "html", *, to: Path | None = None) -> Path:
    """Write the report of a run to a file, whole or not at all, and return its path.

    Args:
        to: the file; by default ``report.html`` (``.md``, ``.json``) in the run folder.

    Raises:
        RunError, UsageError: as `render`.
        NegawattError: the file cannot be written.
    """
    content = render(run_path, format)
    target = to if to is not None else Path(run_path) / f"report{FORMATS[format]}"
    with written_beside(target) as temporary:
        temporary.write_text(content, "utf-8")
    return target
