"""`Following`: exports what a measured command has spent, while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from negawatt.energy import Energy
from negawatt.export.exporter import Exporter, Outlet
from negawatt.meter.command import Follower
from negawatt.meter.measurement import Measurement
from negawatt.meter.meter import Window
from negawatt.monitor.parts import triple
from negawatt.monitor.sample import Component, Line, Sample
from negawatt.monitor.split import NOTHING, Joules

PERIOD_S = 1.0


class Following(Follower):
    """Hands a sample of the command to the exporters every second, and the last at its end."""

    def __init__(self, exporters: Sequence[Exporter]) -> None:
        self._warnings: list[str] = []
        self._outlet = Outlet(exporters, self._warnings.append)
        self._name = ""
        self._last: Measurement | None = None
        self._due_s = 0.0

    def begin(self, window: Window, command: Sequence[str]) -> None:
        self._name = command[0].rpartition("/")[2]
        self._outlet.start()
        self._due_s = time.monotonic() + PERIOD_S

    def look(self, window: Window) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + PERIOD_S
            self._export(window.so_far())

    def end(self, measurement: Measurement) -> Sequence[str]:
        self._export(measurement)
        self._outlet.close()
        return self._warnings

    def _export(self, now: Measurement) -> None:
        self._outlet.export(command_sample(self._name, self._last, now))
        self._last = now


def command_sample(name: str, before: Measurement | None, now: Measurement) -> Sample:
    """What a command spent between two looks at it, as a sample with one line.

    Components are the parts of what is charged to the command, not of the machine.
    """
    past: Mapping[str, Energy] = before.components if before else {}
    since_s = before.duration_s if before else 0.0
    components = [
        _component(part, past.get(part), energy, now.duration_s - since_s)
        for part, energy in now.components.items()
    ]
    spent, total = NOTHING, NOTHING
    for component in components:
        spent, total = spent.plus(component.spent or NOTHING), total.plus(component.total)
    used_s = now.cpu_s - (before.cpu_s if before else 0.0)
    return Sample(
        at_s=time.time(),
        duration_s=now.duration_s - since_s,
        elapsed_s=now.duration_s,
        components=tuple(components),
        idle=None,
        idle_reason="what is charged to the command holds its share of idle energy",
        unattributed=None,
        processes=[Line(name, 0, None, spent, total, used_s)],
        ended=None,
        groups=[],
        ended_groups=None,
        busy_s=used_s,
        steal_s=now.steal_s - (before.steal_s if before else 0.0),
        notes=now.warnings,
        subject="command",
    )


def _component(name: str, before: Energy | None, now: Energy, covered_s: float) -> Component:
    total, past = triple(now), triple(before) if before else NOTHING
    if total is None or past is None:
        return Component(
            name, "chip", None, now.provenance, None, total or NOTHING, now.reason, total is None
        )
    value_j = total.value_j - past.value_j
    low_j, high_j = total.low_j - past.low_j, total.high_j - past.high_j
    spent = Joules(value_j, min(low_j, high_j, value_j), max(low_j, high_j, value_j))
    return Component(name, "chip", None, now.provenance, spent, total, now.reason, covered_s=covered_s)
