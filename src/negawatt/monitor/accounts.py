"""`Accounts`: what every process and every group has been charged so far, also once it has ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from negawatt.monitor.groups import Group
from negawatt.monitor.processes import Process
from negawatt.monitor.sample import Line
from negawatt.monitor.split import NOTHING, Joules

LINGER_S = 300.0
"""A group that nobody runs in keeps its line for so long: its last joules are still to be scraped."""

_MEMORY_S = 1.0
"""The memory of groups is added up, and empty ones are looked for, no more often than this."""


class Accounts:
    """Running totals. The lines it returns always add up to everything that was ever charged.

    Attributes:
        ended: the line of all processes that have ended.
        ended_groups: the line of all groups that have been empty for `LINGER_S`.
    """

    def __init__(self) -> None:
        self._lines: dict[Process, Line] = {}
        self._charged: list[Process] = []
        self._memory: dict[Group, int] = {}
        self._memory_at_s = float("-inf")
        self._groups: dict[Group, Joules] = {}
        self._empty_since_s: dict[Group, float] = {}
        self.ended = self.ended_groups = Line("", 0, None, NOTHING, NOTHING)

    def charge(
        self,
        charges: Mapping[Process, Joules],
        ended: Iterable[Process],
        running: Iterable[Process],
        now_s: float,
    ) -> tuple[Sequence[Line], Sequence[Line]]:
        """Add one interval's charges; return a line for every running process and every group.

        Args:
            charges: joules of the interval by process, running all of them.
            ended: processes that have ended since the last call.
            running: all that run now.
            now_s: any clock that only moves forward.
        """
        closed = NOTHING
        lines = self._lines
        for process in ended:
            if process in lines:
                closed = closed.plus(lines.pop(process).total)
        self.ended = Line("", 0, None, NOTHING, self.ended.total.plus(closed))
        # Most processes slept: their lines of last time still hold.
        for process in self._charged:
            if process in lines and process not in charges:
                name, pid, group, _, total, _, memory_bytes = lines[process]
                lines[process] = Line(name, pid, group, NOTHING, total, 0.0, memory_bytes)
        self._charged = list(charges)
        for process, joules in charges.items():
            total = lines[process].total.plus(joules) if process in lines else joules
            lines[process] = Line(
                process.name,
                process.pid,
                process.group,
                joules,
                total,
                process.used_s,
                process.memory_bytes,
            )
        return list(lines.values()), self._grouped(charges, running, now_s)

    def _grouped(
        self, charges: Mapping[Process, Joules], running: Iterable[Process], now_s: float
    ) -> list[Line]:
        spent: dict[Group, Joules] = {}
        cpu_s: dict[Group, float] = {}
        for process, joules in charges.items():
            group = process.group
            spent[group] = spent.get(group, NOTHING).plus(joules)
            cpu_s[group] = cpu_s.get(group, 0.0) + process.used_s
        for group, joules in spent.items():
            self._groups[group] = self._groups.get(group, NOTHING).plus(joules)
        if now_s - self._memory_at_s >= _MEMORY_S:
            self._memory, self._memory_at_s = {}, now_s
            for process in running:
                self._memory[process.group] = self._memory.get(process.group, 0) + process.memory_bytes
            self._fold(self._memory, now_s)
        memory = self._memory
        return [
            Line(
                group.name,
                0,
                group,
                spent.get(group, NOTHING),
                total,
                cpu_s.get(group, 0.0),
                memory.get(group, 0),
            )
            for group, total in self._groups.items()
        ]

    def _fold(self, running: Mapping[Group, int], now_s: float) -> None:
        """Bring groups that have long been empty into one line."""
        folded = NOTHING
        for group in list(self._groups):
            if group in running:
                self._empty_since_s.pop(group, None)
            elif now_s - self._empty_since_s.setdefault(group, now_s) >= LINGER_S:
                folded = folded.plus(self._groups.pop(group))
                del self._empty_since_s[group]
        self.ended_groups = Line("", 0, None, NOTHING, self.ended_groups.total.plus(folded))
