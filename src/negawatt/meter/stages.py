"""`Ledger`: shares the joules of a window among its named stages, which may nest and overlap.

At every start and end of a stage the time since the last such moment is closed and what was spent
in it is given to the stages that were innermost then. Those share CPU time by what their own
threads used, and the rest (helper threads, child processes, devices) equally. What was spent
while no stage was open stays with the window itself. So all parts add up to the window, however
stages overlap.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from negawatt.energy import Energy
from negawatt.meter.accumulate import Total
from negawatt.meter.measurement import Stage
from negawatt.meter.process import thread_cpu_s

_CPU_COMPONENTS = ("cpu", "dram")


@dataclass
class _Open:
    """A stage while it is being kept: what it spent itself, without the stages inside it."""

    name: str
    parent: int | None
    thread: int
    started_s: float
    stopped_s: float | None = None
    inner: int = 0  # stages open directly inside it
    cpu_s: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Moment:
    at_s: float
    cpu_s: float
    totals: Mapping[str, Total]


class Ledger:
    """Keeps the stages of one window. Safe to use from many threads.

    Args:
        cpu_s: tells the CPU seconds that the measured process tree has used.
        totals: tells the joules that the machine's components have used.
        begun_s, cpu_at_start_s, totals_at_start: the same at the window's start.
    """

    def __init__(
        self,
        cpu_s: Callable[[], float],
        totals: Callable[[], Mapping[str, Total]],
        begun_s: float,
        cpu_at_start_s: float,
        totals_at_start: Mapping[str, Total],
    ) -> None:
        self._cpu_s, self._totals = cpu_s, totals
        self._lock = threading.Lock()
        self._whole = _Open("", None, 0, 0.0)
        self._stages: list[_Open] = []
        self._innermost: dict[int, float] = {}  # open stage without open ones inside -> its thread's CPU
        self._last = _Moment(begun_s, cpu_at_start_s, totals_at_start)

    def open(self, name: str, parent: int | None) -> int:
        """Start a stage; return its position."""
        with self._lock:
            self._close_stretch()
            position = len(self._stages)
            thread = threading.get_native_id()
            self._stages.append(_Open(name, parent, thread, self._last.at_s))
            if parent is not None and self._stages[parent].stopped_s is None:
                self._stages[parent].inner += 1
                self._innermost.pop(parent, None)
            self._innermost[position] = thread_cpu_s(thread)
            return position

    def close(self, position: int) -> None:
        """End a stage."""
        with self._lock:
            self._close_stretch()
            self._end(position)

    def lift(self, position: int) -> None:
        """Take the stages still open inside a stage out of it: they were beside it and go on without it.

        What each of them spent so far, it spent while both were open: half of it is the other's.
        """
        with self._lock:
            self._close_stretch()
            left = self._stages[position]
            for stage in self._stages:
                if stage.parent != position or stage.stopped_s is not None:
                    continue
                stage.parent = left.parent
                left.inner -= 1
                stage.cpu_s, left.cpu_s = stage.cpu_s / 2, left.cpu_s + stage.cpu_s / 2
                for component, joules in stage.joules.items():
                    stage.joules[component] = joules / 2
                    left.joules[component] = left.joules.get(component, 0.0) + joules / 2
                if left.parent is not None:
                    self._stages[left.parent].inner += 1
            if left.inner == 0 and position not in self._innermost:
                self._innermost[position] = thread_cpu_s(left.thread)

    def finish(self) -> list[str]:
        """Close the last stretch; end what is still open and return the names of those stages."""
        with self._lock:
            self._close_stretch()
            left = [i for i, stage in enumerate(self._stages) if stage.stopped_s is None]
            for position in reversed(left):
                self._end(position)
            return [self._stages[i].name for i in left]

    def _end(self, position: int) -> None:
        stage = self._stages[position]
        stage.stopped_s = self._last.at_s
        self._innermost.pop(position, None)
        parent = stage.parent
        if parent is not None and self._stages[parent].stopped_s is None:
            self._stages[parent].inner -= 1
            if self._stages[parent].inner == 0:
                self._innermost[parent] = thread_cpu_s(self._stages[parent].thread)

    def _moment(self) -> _Moment:
        return _Moment(time.monotonic(), self._cpu_s(), self._totals())

    def _close_stretch(self) -> None:
        """Give what was spent since the last moment to the stages innermost in that time."""
        now, last = self._moment(), self._last
        self._last = now
        cpu_s = max(0.0, now.cpu_s - last.cpu_s)
        shares = self._cpu_shares(cpu_s)
        for stage, share_s in shares:
            stage.cpu_s += share_s
        used_s = math.fsum(share_s for _, share_s in shares)
        for component, total in now.totals.items():
            if component not in last.totals:
                continue
            joules = total.value_j - last.totals[component].value_j
            by_cpu = component.split("/")[0] in _CPU_COMPONENTS and used_s > 0
            for stage, share_s in shares:
                part = share_s / used_s if by_cpu else 1 / len(shares)
                stage.joules[component] = stage.joules.get(component, 0.0) + joules * part

    def _cpu_shares(self, cpu_s: float) -> list[tuple[_Open, float]]:
        """The innermost stages, or the window itself, and the CPU seconds of the stretch each used."""
        if not self._innermost:
            return [(self._whole, cpu_s)]
        by_thread: dict[int, list[int]] = {}
        for position in self._innermost:
            by_thread.setdefault(self._stages[position].thread, []).append(position)
        own: dict[int, float] = {}
        for thread, positions in by_thread.items():
            now_s = thread_cpu_s(thread)
            for position in positions:
                own[position] = max(0.0, now_s - self._innermost[position]) / len(positions)
                self._innermost[position] = now_s
        # Clocks are read one after another: never hand out more than was used.
        known_s = math.fsum(own.values())
        scale = min(1.0, cpu_s / known_s) if known_s > 0 else 0.0
        rest_s = (cpu_s - known_s * scale) / len(own)
        return [(self._stages[position], used_s * scale + rest_s) for position, used_s in own.items()]

    def stages(
        self, components: Mapping[str, Energy], refresh_s: Mapping[str, float], duration_s: float
    ) -> tuple[Stage, ...]:
        """The stages, parents first, with the window's energy shared among them.

        Args:
            components: energy charged to the window, by component.
            refresh_s: how often each component's counter is refreshed; a stage's interval holds
                one refresh, since what it spent may show up only after its end.
            duration_s: length of the window.
        """
        own = [self._whole, *self._stages]
        whole = _Spent(math.fsum(s.cpu_s for s in own), _summed(s.joules for s in own))
        inner = [_Spent(stage.cpu_s, dict(stage.joules)) for stage in self._stages]
        for position in range(len(self._stages) - 1, -1, -1):
            parent = self._stages[position].parent
            if parent is not None:
                inner[parent].add(inner[position])

        def energy(spent: _Spent) -> Energy:
            return _part(spent, whole, components, refresh_s, duration_s)

        return tuple(
            Stage(
                name=stage.name,
                parent=stage.parent,
                started_s=stage.started_s,
                duration_s=(self._last.at_s if stage.stopped_s is None else stage.stopped_s)
                - stage.started_s,
                energy=energy(spent),
                self_energy=energy(_Spent(stage.cpu_s, stage.joules)),
                cpu_s=spent.cpu_s,
            )
            for stage, spent in zip(self._stages, inner, strict=True)
        )


@dataclass
class _Spent:
    """CPU seconds and raw joules by component."""

    cpu_s: float
    joules: dict[str, float]

    def add(self, other: _Spent) -> None:
        self.cpu_s += other.cpu_s
        for component, joules in other.joules.items():
            self.joules[component] = self.joules.get(component, 0.0) + joules


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for component, joules in part.items():
            total[component] = total.get(component, 0.0) + joules
    return total


def _part(
    spent: _Spent,
    whole: _Spent,
    components: Mapping[str, Energy],
    refresh_s: Mapping[str, float],
    duration_s: float,
) -> Energy:
    """What part of the window's energy was spent: by each counter, or by CPU time without one."""
    parts = []
    for component, energy in components.items():
        if whole.joules.get(component, 0.0) > 0:
            share = spent.joules.get(component, 0.0) / whole.joules[component]
        else:
            share = spent.cpu_s / whole.cpu_s if whole.cpu_s > 0 else 0.0
        part = energy.scaled(share)
        if energy.value_j is not None and part.low_j is not None and part.high_j is not None:
            assert part.value_j is not None
            edge_j = energy.value_j / duration_s * min(refresh_s.get(component, 0.0), duration_s)
            low_j = min(part.value_j, max(0.0, part.low_j - edge_j))
            part = Energy(part.value_j, low_j, part.high_j + edge_j, part.provenance, part.reason)
        parts.append(part)
    return Energy.total(parts)
