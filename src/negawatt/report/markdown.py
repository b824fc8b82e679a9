"""The report as Markdown: the same facts, in the same order, for a pull request or a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from negawatt.report import columns, words
from negawatt.report.answer import answer
from negawatt.report.facts import Facts
from negawatt.report.reading import text

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def escaped(value: str) -> str:
    """Text that Markdown shows as it is, on one line, with no markup or HTML taken from it."""
    one_line = re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", value)
    return _SPECIAL.sub(r"\\\1", escape(one_line, quote=False))


def markdown(facts: Facts) -> str:
    """Render a run as Markdown."""
    found = answer(facts)
    lines = [f"# {escaped(found.headline)}", ""]
    if found.saving:
        lines += [f"**{escaped(found.saving)}**", ""]
    lines += [f"{escaped(facts.artifact_name)} on {escaped(facts.workload_name)}. {found.status}.", ""]
    if found.text:
        lines += [escaped(found.text), ""]
    lines += _table(("", "", ""), found.figures)
    lines += _profiles(facts)
    lines += _joules(facts)
    if facts.kind != "profile":
        lines += ["## Every trial", ""]
        metric = words.metric_of(facts)
        headers = [column.header for column in columns.COLUMNS]
        cells = [[column.cell(trial, metric) for column in columns.COLUMNS] for trial in facts.trials]
        lines += _table(headers, cells) if cells else ["No trial is on record.", ""]
    lines += ["## How it was measured", "", *_items(columns.method_rows(facts))]
    if warnings := columns.all_warnings(facts):
        lines += ["### Warnings and notes", "", *(f"- {escaped(w)}" for w in warnings), ""]
    lines += ["## The machine", "", *(_items(columns.machine_rows(facts)) or ["not recorded", ""])]
    lines += ["## How to do it again", ""]
    if command := columns.command(facts):
        lines += ["", *(f"    {line}" for line in command.splitlines()), ""]
    lines += _items(columns.origin_rows(facts))
    return "\n".join(lines).rstrip() + "\n"


def _profiles(facts: Facts) -> list[str]:
    profiles = columns.profiles(facts)
    if not profiles:
        return []
    rows: dict[str, list[str]] = {}
    for i, (_, profile) in enumerate(profiles):
        for name, value in columns.profile_rows(profile):
            rows.setdefault(name, ["not measured"] * len(profiles))[i] = value
    headers = ("", *(name for name, _ in profiles))
    return ["## Side by side", "", *_table(headers, [[name, *values] for name, values in rows.items()])]


def _joules(facts: Facts) -> list[str]:
    phases = [[name, *cells] for name, cells in columns.phase_rows(facts)]
    if not phases and not facts.waterfall:
        return (
            ["## Where the joules go", "", "not measured: this run recorded no phases.", ""]
            if facts.finished
            else []
        )
    lines = ["## Where the joules go", ""]
    if phases:
        lines += _table(("Phase", *(name for name, _ in columns.profiles(facts))), phases)
    if facts.waterfall:
        lines += _table(("Step", f"{columns.step_unit(facts)} per token", "Change"), columns.step_rows(facts))
    return lines


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(escaped(text(cell)) for cell in cells)} |"

    return [line(headers), f"|{' --- |' * len(headers)}", *map(line, rows), ""]


def _items(rows: Iterable[tuple[str, str]]) -> list[str]:
    items = [f"- {escaped(name)}: {escaped(value)}" for name, value in rows]
    return [*items, ""] if items else []
