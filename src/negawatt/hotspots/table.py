"""Hot-spots as a table of text: rows for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from negawatt.hotspots.hotspots import Hotspots
from negawatt.hotspots.roles import Role, by_role
from negawatt.hotspots.spot import Spot

ROLE_HEAD = ("stage", "part", "joules", "share", "CPU", "FLOPs", "bytes", "FLOPs/byte")


def role_rows(hotspots: Hotspots) -> list[tuple[str, ...]]:
    """A row a stage and role of a model's parts, under `ROLE_HEAD`; none where there are no modules."""
    whole_s = hotspots.whole.cpu_s
    return [_role_row(role, whole_s) for role in by_role(hotspots.whole)]


def spot_head(hotspots: Hotspots) -> tuple[str, ...]:
    """The columns of `spot_rows`: work is shown where it was counted."""
    work = ("FLOPs", "bytes") if hotspots.whole.moved_bytes is not None else ()
    count = "samples" if hotspots.samples is not None else "calls"
    return ("part", "where", "joules itself", "share", "CPU itself", "CPU with all inside", count, *work)


def spot_rows(hotspots: Hotspots, most: int = 12) -> list[tuple[str, ...]]:
    """The dearest parts, each once, under `spot_head`."""
    return [_spot_row(spot, hotspots) for spot in hotspots.flat()[:most] if spot.kind != "whole"]


def _spot_row(spot: Spot, hotspots: Hotspots) -> tuple[str, ...]:
    row = (
        spot.name,
        spot.place,
        str(spot.self_energy),
        share(spot.self_cpu_s, hotspots.whole.cpu_s),
        seconds(spot.self_cpu_s),
        seconds(spot.cpu_s),
        f"{spot.count:,}" if spot.count else "",
    )
    if hotspots.whole.moved_bytes is None:
        return row
    return (*row, quantity(spot.flops), quantity(spot.moved_bytes))


def _role_row(role: Role, whole_s: float) -> tuple[str, ...]:
    intensity = role.flops / role.moved_bytes if role.flops and role.moved_bytes else None
    return (
        role.stage,
        role.name,
        str(role.energy),
        share(role.cpu_s, whole_s),
        seconds(role.cpu_s),
        quantity(role.flops),
        quantity(role.moved_bytes),
        f"{intensity:.2g}" if intensity else "",
    )


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent; empty of nothing."""
    return f"{100 * part / whole:.1f} %" if whole > 0 and part else ""


def seconds(cpu_s: float) -> str:
    """CPU time in a unit that fits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if cpu_s * factor >= 1:
            return (
                f"{cpu_s * factor:.3g} {unit}" if cpu_s * factor < 1000 else f"{cpu_s * factor:,.0f} {unit}"
            )
    return ""


def quantity(number: float | None) -> str:
    """A count with a prefix of SI (k, M, G, T); empty when nobody counted."""
    if number is None:
        return ""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}"
    return f"{number:.3g}"


def text(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A table for the terminal, without lines around it, as wide as asked at most."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(head):
        left = title in ("stage", "part", "where")
        table.add_column(
            title,
            justify="left" if left else "right",
            overflow="fold" if left else "ellipsis",
            no_wrap=not left,
        )
        if number and not any(row[number] for row in rows):
            table.columns[-1].width = len(title)
    for row in rows:
        table.add_row(*row)
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
