"""``negawatt report``: turn a run into HTML, Markdown or JSON."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from negawatt.cli.common import examples
from negawatt.errors import UsageError


@click.command(
    epilog=examples(
        "negawatt report runs/tune-20261122-101500",
        "negawatt report RUN --format markdown -o -",
        "negawatt report RUN --svg pareto.svg",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(["html", "markdown", "json"]), help="Default: html.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, allow_dash=True),
    help="File to write, or - for standard output. Default: report.html (.md, .json) in the run folder.",
)  # fmt: skip
@click.option(
    "--svg", type=click.Path(path_type=Path), help="Write the Pareto plot alone to this file instead."
)
@click.option("--open", "open_", is_flag=True, help="Show what was written in the web browser.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the report as one JSON document: --format json -o -"
)
def command(
    run: Path, format_: str | None, output: Path | None, svg: Path | None, open_: bool, as_json: bool
) -> None:
    """Turn a run, finished or not, into one file that opens anywhere without a network."""
    from negawatt.home import written_beside
    from negawatt.report import plot_svg, render, write

    if svg is not None and (format_ or output or as_json):
        raise UsageError("--svg writes the plot alone; leave out --format, --output and --json")
    if as_json and (format_ not in (None, "json") or output):
        raise UsageError("--json prints to standard output; leave out --format and --output")
    printed = as_json or str(output) == "-"
    if printed and open_:
        raise UsageError("--open needs a file; leave out --json and -o -")
    if printed:
        click.echo(render(run, "json" if as_json else format_ or "html"), nl=False)
        return
    if svg is not None:
        picture = plot_svg(run)
        with written_beside(svg) as temporary:
            temporary.write_text(picture, "utf-8")
        target = svg
    else:
        target = write(run, format_ or "html", to=output)
    click.echo(str(target))
    if open_ and not webbrowser.open(target.absolute().as_uri()):
        click.echo(f"negawatt: no web browser could be started; open {target} yourself", err=True)
