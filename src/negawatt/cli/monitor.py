"""``negawatt monitor``: what this machine and everything on it spends, for as long as it runs."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.exports import export_options, exporters
from negawatt.cli.measure import sensor_option, station_with

if TYPE_CHECKING:
    from negawatt.monitor import Line, Monitor, Sample

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_REDRAW_S = 0.5


@click.command(
    epilog=examples(
        "negawatt monitor --once",
        "negawatt monitor --prometheus-port 9166",
        "negawatt monitor --interval 10 --csv energy.csv --otlp http://localhost:4318",
        "negawatt monitor --json | jq -c '[.at, .energy.value_j]'",
    )
)
@json_option
@sensor_option
@export_options
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two samples.",
)
@click.option("--once", is_flag=True, help="Stop after one interval.")
@click.option(
    "--top",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="Show so many processes on the terminal; exports hold all.",
)
def command(
    as_json: bool, sensors: tuple[str, ...], interval: float, once: bool, top: int, **where: Any
) -> None:
    """Divide what this machine spends among its processes and containers, interval by interval.

    Shows a table on a terminal, prints one JSON document a line with --json, and exports as asked,
    until Ctrl-C or SIGTERM, which end it cleanly. The parts make the whole: idle energy is a line
    of its own where it is known, and so is what no visible process accounts for.
    """
    from negawatt.export import Outlet
    from negawatt.monitor import Monitor

    targets = exporters(**where)
    # Blocked rather than handled: they are waited for below, and no thread is interrupted by them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        monitor = Monitor(station_with(sensors))
        outlet = Outlet(targets, lambda sentence: click.echo(f"negawatt: {sentence}", err=True))
        with outlet, _screen(as_json, once, top, bool(targets)) as show:
            _watch(monitor, interval, once, (outlet.export, show))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch(
    monitor: Monitor, interval_s: float, once: bool, listeners: Sequence[Callable[[Sample], None]]
) -> None:
    """Look at every interval until a signal asks to end; late looks are skipped, never hurried after."""
    due_s = time.monotonic() + interval_s
    while True:
        ended = signal.sigtimedwait(_ENDING, max(0.0, due_s - time.monotonic())) is not None
        sample = monitor.look()
        for listener in listeners:
            listener(sample)
        if ended or once:
            return
        now_s = time.monotonic()
        due_s = max(due_s + interval_s, now_s)


def _screen(as_json: bool, once: bool, top: int, exporting: bool) -> AbstractContextManager[Any]:
    """What to do with a sample on standard output."""
    if as_json:
        return nullcontext(lambda sample: _print_json(sample, once))
    if once:
        return nullcontext(lambda sample: _print_table(sample, top))
    if sys.stdout.isatty():
        return _Live(top)
    # A daemon that exports has nothing to say; one that does not would be of no use without a table.
    return nullcontext((lambda sample: None) if exporting else (lambda sample: _print_table(sample, top)))


def _print_json(sample: Sample, once: bool) -> None:
    document = sample.to_json()
    if once:
        emit(document)
        return
    click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()


def _print_table(sample: Sample, top: int) -> None:
    from rich.console import Console

    Console(highlight=False).print(_table(sample, top))


class _Live(AbstractContextManager[Any]):
    """A table that is drawn anew, at most twice a second."""

    def __init__(self, top: int) -> None:
        from rich.live import Live

        self._top, self._drawn_s = top, float("-inf")
        self._live = Live(auto_refresh=False, transient=False)

    def __enter__(self) -> Any:
        self._live.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _show(self, sample: Sample) -> None:
        if time.monotonic() - self._drawn_s >= _REDRAW_S:
            self._drawn_s = time.monotonic()
            self._live.update(_table(sample, self._top), refresh=True)


def _table(sample: Sample, top: int) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left", title=_title(sample))
    for name, justify in (("watts", "right"), ("joules", "right"), ("cpu", "right"), ("pid", "right")):
        table.add_column(name, justify=justify, no_wrap=True, min_width=6)  # type: ignore[arg-type]
    table.add_column("what", no_wrap=True, min_width=15)
    table.add_column("where", overflow="ellipsis", no_wrap=True, ratio=1)

    def add(line: Line, what: str, where: str = "", cpu: bool = True) -> None:
        share = f"{line.cpu_s / sample.duration_s:.0%}" if cpu and sample.duration_s > 0 else ""
        table.add_row(
            _watts(sample, line), f"{line.total.value_j:,.1f}", share, str(line.pid or ""),
            escape(what), escape(where),
        )  # fmt: skip

    for component in sample.components:
        within = f"within {component.part_of}" if component.part_of else component.boundary
        watts = "missing" if component.power_w is None else f"{component.power_w:.3g}"
        table.add_row(watts, f"{component.total.value_j:,.1f}", "", "", f"[bold]{component.name}[/]", within)
    if sample.idle is not None:
        add(sample.idle, "idle", sample.idle_reason, cpu=False)
    else:
        table.add_row("missing", "", "", "", "idle", escape(sample.idle_reason))
    if sample.unattributed is not None:
        add(sample.unattributed, "unattributed", cpu=False)
    ranked = sorted(sample.processes, key=lambda line: line.spent.value_j, reverse=True)
    for line in ranked[:top]:
        group = line.group
        add(line, line.name, f"{group.kind} {group.name}" if group and group.kind != "root" else "")
    rest = ranked[top:]
    ended_j = sample.ended.total.value_j if sample.ended is not None else 0.0
    if rest or ended_j:
        rest_w = sum(line.spent.value_j for line in rest) / max(sample.duration_s, 1e-9)
        joules = sum(line.total.value_j for line in rest) + ended_j
        table.add_row(
            f"{rest_w:.3g}", f"{joules:,.1f}", "", "", f"{len(rest)} others", "and those that ended"
        )
    return table


def _title(sample: Sample) -> str:
    energy = sample.energy
    if energy.value_j is None or sample.duration_s <= 0:
        return f"{energy}"
    low, value, high = (
        0.0 if joules is None else joules / sample.duration_s
        for joules in (energy.low_j, energy.value_j, energy.high_j)
    )
    return f"{value:.3g} W ({low:.3g}–{high:.3g}, {energy.provenance}), {sample.elapsed_s:.0f} s"


def _watts(sample: Sample, line: Line) -> str:
    if sample.duration_s <= 0 or sample.energy.is_missing:
        return "missing"
    return f"{line.spent.value_j / sample.duration_s:.3g}"
