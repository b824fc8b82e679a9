"""`Sample`: what a machine and everything on it spent in one interval, and since the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from negawatt.energy import Energy, Provenance
from negawatt.meter.sensor import Boundary
from negawatt.monitor.groups import Group
from negawatt.monitor.split import Joules


class Component(NamedTuple):
    """A part of the machine that is counted.

    Attributes:
        name: ``cpu/0``, ``dram/0``, ``gpu/1``, ``wall/desk``.
        boundary: where its joules are counted.
        part_of: the component that contains it, whose joules hold its own.
        provenance: where its figures come from.
        spent: joules in the interval; None when it gave no reading in it.
        total: joules since the beginning, those of intervals without reading included.
        reason: why `spent` is None, or which models the estimate spans.
        failing: whether its last reading failed, so that `total` is out of date.
        covered_s: seconds in which `spent` was: more than the interval after one without reading.
    """

    name: str
    boundary: Boundary
    part_of: str | None
    provenance: Provenance
    spent: Joules | None
    total: Joules
    reason: str = ""
    failing: bool = False
    covered_s: float = 0.0

    @property
    def power_w(self) -> float | None:
        """Mean power while `spent` was spent; None when that is not known."""
        return self.spent.value_j / self.covered_s if self.spent is not None and self.covered_s > 0 else None

    @property
    def is_whole(self) -> bool:
        """Whether its joules are among those that are divided: of a chip, and not of a part of one."""
        return self.boundary == "chip" and self.part_of is None


class Line(NamedTuple):
    """Somebody that joules are charged to.

    Attributes:
        name: of the process, the container or unit.
        pid: of the process; 0 for others.
        group: the control group.
        spent: joules in the interval, idle energy left out where that is known.
        total: joules since the beginning.
        cpu_s: CPU seconds in the interval.
        memory_bytes: resident memory of the process, or of all of the group's.
    """

    name: str
    pid: int
    group: Group | None
    spent: Joules
    total: Joules
    cpu_s: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One interval of a `Monitor`.

    ``idle + unattributed + ended + Σ processes`` are all joules of the whole components; so are
    ``idle + unattributed + ended_groups + Σ groups``.

    Attributes:
        at_s: end of the interval, in seconds since 1970.
        duration_s: its length.
        elapsed_s: seconds since the beginning.
        components: of the machine; see `Component.is_whole` for those that are divided.
        idle: what would have flowed anyway, of the components whose idle power is known; None where
            none is. Of the others those who ran carry it.
        idle_reason: which components those are, and what to do about it; empty when there are none.
        unattributed: what no process that can be seen accounts for.
        processes: every process charged anything so far and still running.
        ended: the same of those that have ended, in one line.
        groups: control groups, among them containers, with all that ever ran in each.
        ended_groups: those that have been empty for a while.
        busy_s, steal_s: CPU seconds the machine's processors were busy, and withheld by the host.
        notes: sentences that whoever reads the figures should know.
        subject: whose components these are: the machine's, or those of what one command is charged,
            which is then its only line; the lines for others are None.
    """

    at_s: float
    duration_s: float
    elapsed_s: float
    components: tuple[Component, ...]
    idle: Line | None
    idle_reason: str
    unattributed: Line | None
    processes: Sequence[Line]
    ended: Line | None
    groups: Sequence[Line]
    ended_groups: Line | None
    busy_s: float
    steal_s: float
    notes: tuple[str, ...] = ()
    subject: Literal["machine", "command"] = "machine"

    @property
    def energy(self) -> Energy:
        """Joules of the whole machine in the interval, at the chips."""
        return Energy.total(component_energy(c) for c in self.components if c.is_whole)

    @property
    def total(self) -> Energy:
        """Joules of the whole machine since the beginning, at the chips."""
        return Energy.total(component_total(c) for c in self.components if c.is_whole)

    def charged(self, joules: Joules) -> Energy:
        """What a line was charged in the interval; missing if any component gave no reading in it."""
        lost = [f"{c.name}: {c.reason}" for c in self.components if c.is_whole and c.spent is None]
        if lost:
            return Energy(None, joules.low_j, None, Provenance.MISSING, "; ".join(lost))
        return Energy(*joules, self.provenance)

    def charged_total(self, joules: Joules) -> Energy:
        """What a line has been charged since the beginning."""
        return Energy(*joules, self.provenance)

    @property
    def provenance(self) -> Provenance:
        """Of what is charged: a share is derived at best."""
        return max([Provenance.DERIVED, *(c.provenance for c in self.components if c.is_whole)])

    def to_json(self) -> dict[str, Any]:
        """The document of ``negawatt monitor --json``."""
        return {
            "at": datetime.fromtimestamp(self.at_s, UTC).isoformat(timespec="milliseconds"),
            "at_s": self.at_s,
            "duration_s": self.duration_s,
            "elapsed_s": self.elapsed_s,
            "energy": self.energy.to_json(),
            "total": self.total.to_json(),
            "components": {
                c.name: {
                    "boundary": c.boundary,
                    "part_of": c.part_of,
                    "energy": component_energy(c).to_json(),
                    "total": component_total(c).to_json(),
                }
                for c in self.components
            },
            "idle": self._idle_json(),
            "unattributed": self._line_json(self.unattributed) if self.unattributed else None,
            "processes": [self._line_json(line) for line in self.processes],
            "ended": self._line_json(self.ended) if self.ended else None,
            "groups": [self._line_json(line) for line in self.groups],
            "ended_groups": self._line_json(self.ended_groups) if self.ended_groups else None,
            "busy_s": self.busy_s,
            "steal_s": self.steal_s,
            "warnings": list(self.notes),
        }

    def _idle_json(self) -> dict[str, Any]:
        if self.idle is not None:
            return {**self._line_json(self.idle), "without": self.idle_reason or None}
        missing = Energy.missing(self.idle_reason).to_json()
        return {"energy": missing, "total": missing, "without": self.idle_reason}

    def _line_json(self, line: Line) -> dict[str, Any]:
        document: dict[str, Any] = {}
        if line.name:
            document["name"] = line.name
        if line.pid:
            document["pid"] = line.pid
        if line.group is not None:
            document["group"] = line.group.path
            document["kind"] = line.group.kind
            document["container"] = line.group.container or None
            document["pod"] = line.group.pod or None
        document["energy"] = self.charged(line.spent).to_json()
        document["total"] = self.charged_total(line.total).to_json()
        if line.pid or line.group is not None:
            document["cpu_s"] = line.cpu_s
            document["memory_bytes"] = line.memory_bytes
        return document


def component_energy(component: Component) -> Energy:
    """What a component spent in the interval."""
    if component.spent is None:
        return Energy.missing(component.reason)
    return Energy(*component.spent, component.provenance, component.reason)


def component_total(component: Component) -> Energy:
    """What a component has spent since the beginning, as far as it could be read."""
    return Energy(*component.total, component.provenance, component.reason)
