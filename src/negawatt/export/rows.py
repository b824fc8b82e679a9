"""Samples as rows of a table: one for the machine, each component, each line that was charged."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from negawatt.energy import Energy
from negawatt.monitor.sample import Line, Sample, component_energy, component_total
from negawatt.monitor.split import NOTHING


class Row(NamedTuple):
    """One row. Joules are those of the interval, `total_j` those since the beginning.

    `kind` is ``machine``, ``component``, ``idle``, ``unattributed``, ``process`` or ``group``, and
    ``command`` for the whole of what one measured command is charged. The rows of one moment are
    several ways to divide one whole: add up rows of one kind only. Missing
    figures are None, never 0, and `reason` says why.
    """

    time: datetime
    duration_s: float
    kind: str
    name: str
    pid: int | None
    cgroup: str
    container: str
    pod: str
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    provenance: str
    total_j: float | None
    cpu_s: float | None
    memory_bytes: int | None
    reason: str


def rows(sample: Sample) -> Iterator[Row]:
    """The rows of a sample; processes and groups that were charged nothing in the interval are left out."""
    at = datetime.fromtimestamp(sample.at_s, UTC)

    def row(kind: str, name: str, energy: Energy, total: Energy, line: Line | None = None) -> Row:
        group = line.group if line else None
        told = line is not None and (line.pid or group)
        return Row(
            time=at,
            duration_s=sample.duration_s,
            kind=kind,
            name=name,
            pid=line.pid or None if line else None,
            cgroup=group.path if group else "",
            container=group.container if group else "",
            pod=group.pod if group else "",
            energy_j=energy.value_j,
            low_j=energy.low_j,
            high_j=energy.high_j,
            provenance=str(energy.provenance),
            total_j=total.value_j,
            cpu_s=line.cpu_s if line and told else None,
            memory_bytes=line.memory_bytes or None if line and told else None,
            reason=energy.reason if energy.is_missing else "",
        )

    def charged(kind: str, line: Line) -> Row:
        return row(kind, line.name, sample.charged(line.spent), sample.charged_total(line.total), line)

    name = sample.processes[0].name if sample.subject == "command" else ""
    yield row(sample.subject, name, sample.energy, sample.total)
    for component in sample.components:
        yield row("component", component.name, component_energy(component), component_total(component))
    if sample.idle is not None:
        yield charged("idle", sample.idle)
    if sample.unattributed is not None:
        yield charged("unattributed", sample.unattributed)
    if sample.subject == "command":
        return  # its only line is the whole
    for kind, lines in (("process", sample.processes), ("group", sample.groups)):
        yield from (charged(kind, line) for line in lines if line.spent != NOTHING)
