"""`Measurement`: what was spent between two moments, on what, and how well that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Energy
from negawatt.meter.footprint import Footprint
from negawatt.meter.machine import Share
from negawatt.meter.sensor import Boundary


@dataclass(frozen=True)
class Stage:
    """A named part of a measurement.

    Attributes:
        name: what it was called.
        parent: position of the stage that contains it among the measurement's stages, or None.
        started_s: monotonic time of its start.
        duration_s: seconds.
        energy: joules of the stage with everything inside it.
        self_energy: joules of the stage without the stages inside it.
        cpu_s: CPU seconds of the stage with everything inside it.
    """

    name: str
    parent: int | None
    started_s: float
    duration_s: float
    energy: Energy
    self_energy: Energy
    cpu_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "parent": self.parent,
            "started_s": self.started_s,
            "duration_s": self.duration_s,
            "energy": self.energy.to_json(),
            "self_energy": self.self_energy.to_json(),
            "cpu_s": self.cpu_s,
        }


@dataclass(frozen=True)
class Measurement:
    """Energy and CPU time charged to one process tree over one window.

    Attributes:
        started_s: `time.monotonic` at the start.
        duration_s: seconds from start to stop.
        energy: joules charged to the process tree: the sum of `components`.
        components: the same by component; ``cpu/0``, ``dram/0``, ``gpu/1``, or ``cpu`` where only
            the model applies.
        machine: what the whole machine's sensors counted over the window, whoever spent it,
            including parts of components and the host's or socket's meter.
        idle: the part of `energy` that would have flowed anyway.
        dynamic: the rest; may be negative, and is never clamped.
        cpu_s: CPU seconds of the process tree.
        other_cpu_s: CPU seconds that everything else on the machine used.
        steal_s: CPU seconds that the host withheld from this virtual machine.
        boundary: where the joules were counted.
        warnings: sentences about what makes the figures less certain.
        stages: named parts, parents before children.
        footprint: memory held and bytes moved to and from drives by the process tree.
        share: how much of the machine it may use.
    """

    started_s: float
    duration_s: float
    energy: Energy
    components: Mapping[str, Energy]
    machine: Mapping[str, Energy]
    idle: Energy
    dynamic: Energy
    cpu_s: float
    other_cpu_s: float
    steal_s: float
    boundary: Boundary = "chip"
    warnings: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    footprint: Footprint | None = None
    share: Share | None = None

    @property
    def outside_stages(self) -> Energy:
        """What was spent while no stage was open: with all outermost stages it makes `energy`."""
        outermost = [stage.energy.value_j for stage in self.stages if stage.parent is None]
        inside_j = math.fsum(value for value in outermost if value is not None)
        whole_j = self.energy.value_j
        return self.energy.scaled(1.0 - inside_j / whole_j) if whole_j else self.energy

    def with_warning(self, sentence: str) -> Measurement:
        """A copy with one more warning."""
        return replace(self, warnings=(*self.warnings, sentence))

    def to_json(self) -> dict[str, Any]:
        """The document of ``negawatt measure``, without its exit code."""
        return {
            "energy": self.energy.to_json(),
            "components": {name: e.to_json() for name, e in self.components.items()},
            "machine": {name: e.to_json() for name, e in self.machine.items()},
            "idle": self.idle.to_json(),
            "dynamic": self.dynamic.to_json(),
            "duration_s": self.duration_s,
            "cpu_s": self.cpu_s,
            "other_cpu_s": self.other_cpu_s,
            "steal_s": self.steal_s,
            "boundary": self.boundary,
            "warnings": list(self.warnings),
            "stages": [stage.to_json() for stage in self.stages],
            "footprint": self.footprint.to_json() if self.footprint else None,
            "share": self.share.to_json() if self.share else None,
            "outside_stages": self.outside_stages.to_json(),
        }
