"""`Monitor`: the machine's joules, interval by interval, divided among its processes and containers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Protocol

from negawatt.energy import Provenance
from negawatt.meter.station import Station, station
from negawatt.monitor.accounts import Accounts
from negawatt.monitor.gpus import NvmlUse
from negawatt.monitor.parts import MODEL, ModelPower, counted, scaled, triple
from negawatt.monitor.processes import Process, ProcessTable
from negawatt.monitor.sample import Component, Line, Sample
from negawatt.monitor.split import NOTHING, Joules, Parts, Shares, by_weight, mean, split

_GPU_LOOK_S = 1.0
"""NVML tells what processes used of a GPU over some such stretch; asking more often tells nothing new."""


class GpuUse(Protocol):
    """Tells which processes keep the GPUs busy."""

    def read(self) -> Mapping[str, Mapping[int, float]]:
        """Share of each GPU's work since the last read, by process id.

        The shares of one GPU add up to 1, or there are none; a GPU whose users cannot be told is
        left out.
        """


class Monitor:
    """Divides what the machine spends among those who ran, every time it looks.

    A processor's energy goes by CPU time, a memory's halfway between CPU time and resident memory
    (its interval spans both), a GPU's by what each process used of it.

    Args:
        where: the sensors to use; by default all that can be trusted here.
        table: the processes; by default all that can be seen.
        gpu_use: tells who uses the GPUs; by default NVML where there is one.
    """

    def __init__(
        self, where: Station | None = None, table: ProcessTable | None = None, gpu_use: GpuUse | None = None
    ) -> None:
        self._station = station() if where is None else where
        self._table = ProcessTable() if table is None else table
        self._gpu_use = NvmlUse() if gpu_use is None else gpu_use
        self._gpu_shares: Mapping[str, Mapping[int, float]] = {}
        self._gpu_looked_s = float("-inf")
        self._cores = os.cpu_count() or 1
        self._model = ModelPower.of(self._station.power)
        self._model_total = NOTHING
        self._accounts = Accounts()
        self._idle = self._unattributed = NOTHING
        self._rest_s = self._used_s = 0.0
        self._first = self._station.snapshot()
        self._first_time = self._first.time
        self._last = (self._first, self._first_time)
        self._table.look()
        if any(name.startswith("gpu/") for name in self._first.totals):
            self._gpu_use.read()  # what was used before the beginning is nobody's

    def look(self) -> Sample:
        """Divide what was spent since the last look, or since the monitor was made."""
        (before, time_before), now = self._last, self._station.snapshot()
        ran, ended = self._table.look()
        time_now = now.time
        self._last = (now, time_now)
        duration_s = now.at_s - before.at_s
        rest_s = self._rest(ran, time_now.busy_s - self._first_time.busy_s)
        components = counted(self._first, before, now)
        charges: dict[Process, Joules] = dict.fromkeys(ran, NOTHING)
        unknown: list[str] = []
        idle, unattributed = NOTHING, NOTHING
        has_idle = False
        used = [process.used_s for process in ran]
        # Shares by CPU time: of dynamic energy, and where idle energy is in it.
        dynamic = by_weight(used, rest_s)
        spare_s = max(0.0, duration_s * self._cores - sum(used) - rest_s)
        for component in components:
            if not component.is_whole or component.spent is None:
                continue
            resting = self._resting(component.name, component.covered_s)
            by_cpu = dynamic if resting is not None else by_weight(used, rest_s, spare_s)
            who, shares = self._shares(component.name, ran, by_cpu)
            parts = split(component.spent, resting, shares)
            for process, joules in zip(who, parts.parts, strict=True):
                charges[process] = charges.get(process, NOTHING).plus(joules)
            unattributed = unattributed.plus(parts.unattributed)
            if resting is None:
                unknown.append(component.name)
            else:
                idle, has_idle = idle.plus(resting), True
        if not any(c.is_whole and c.name.startswith("cpu/") for c in components):
            component, parts = self._modelled(sum(used) + rest_s, duration_s, dynamic)
            components.append(component)
            for process, joules in zip(ran, parts.parts, strict=True):
                charges[process] = charges[process].plus(joules)
            unattributed = unattributed.plus(parts.unattributed)
            assert parts.idle is not None
            idle, has_idle = idle.plus(parts.idle), True
        self._idle, self._unattributed = self._idle.plus(idle), self._unattributed.plus(unattributed)
        processes, groups = self._accounts.charge(charges, ended, self._table, now.at_s)
        why = (
            f"the idle power of {', '.join(unknown)} is unknown; negawatt calibrate --idle" if unknown else ""
        )
        return Sample(
            at_s=time.time(),
            duration_s=duration_s,
            elapsed_s=now.at_s - self._first.at_s,
            components=tuple(components),
            idle=Line("", 0, None, idle, self._idle) if has_idle else None,
            idle_reason=why,
            unattributed=Line("", 0, None, unattributed, self._unattributed),
            processes=processes,
            ended=self._accounts.ended,
            groups=groups,
            ended_groups=self._accounts.ended_groups,
            busy_s=time_now.busy_s - time_before.busy_s,
            steal_s=time_now.steal_s - time_before.steal_s,
            notes=self._station.notes,
        )

    def _rest(self, ran: Iterable[Process], busy_s: float) -> float:
        """CPU seconds that no process accounts for, of those since the beginning.

        The machine's times advance in whole ticks and those of processes in nanoseconds, so over a
        short interval one may be ahead of the other: what is ahead is settled later, not lost.
        """
        self._used_s += sum(process.used_s for process in ran)
        rest_s = busy_s - self._used_s
        fresh_s = max(0.0, rest_s - self._rest_s)
        self._rest_s += fresh_s
        return fresh_s

    def _resting(self, component: str, covered_s: float) -> Joules | None:
        if self._station.idle is None:
            return None
        return triple(self._station.idle.energy(component, covered_s))

    def _shares(self, component: str, ran: list[Process], by_cpu: Shares) -> tuple[list[Process], Shares]:
        """Who is charged for a component, and in what proportion."""
        kind = component.partition("/")[0]
        if kind == "cpu":
            return ran, by_cpu
        if kind == "dram":
            everybody = list(dict.fromkeys(chain(ran, self._table)))
            nobody = [by_weight([0.0], 1.0).parts[0]] * (len(everybody) - len(ran))
            widened = Shares([*by_cpu.parts, *nobody], by_cpu.rest)
            held = [float(process.memory_bytes) for process in everybody]
            return everybody, mean(widened, by_weight(held, max(0.0, _memory_used_bytes() - sum(held))))
        users = self._users(component) if kind == "gpu" else {}
        known = {process: users[process.pid] for process in self._table if process.pid in users}
        return list(known), by_weight(list(known.values()), max(0.0, 1.0 - sum(known.values())))

    def _users(self, gpu: str) -> Mapping[int, float]:
        now_s = time.monotonic()
        if now_s - self._gpu_looked_s >= _GPU_LOOK_S:
            self._gpu_looked_s, self._gpu_shares = now_s, self._gpu_use.read()
        return self._gpu_shares.get(gpu, {})

    def _modelled(self, busy_s: float, duration_s: float, shares: Shares) -> tuple[Component, Parts]:
        """The processors by the CPU-time model: all of them idle, and the busy ones on top."""
        model, power = self._model, self._station.power
        if power.at_load is not None and duration_s > 0:
            model = ModelPower.of(power.at_load(min(1.0, busy_s / (self._cores * duration_s))))
        idle = scaled(model.idle_w, self._cores * duration_s)
        dynamic = scaled(model.dynamic_w, busy_s)
        whole = idle.plus(dynamic)
        self._model_total = self._model_total.plus(whole)
        component = Component(
            MODEL,
            "chip",
            None,
            Provenance.ESTIMATED,
            whole,
            self._model_total,
            model.reason,
            covered_s=duration_s,
        )
        parts = [dynamic.times(share) for share in shares.parts]
        return component, Parts(idle, parts, dynamic.times(shares.rest))


def _memory_used_bytes(root: Path = Path("/proc")) -> float:
    """Memory in use, page cache that could be given back left out; 0 where it cannot be told."""
    fields = {}
    try:
        with open(root / "meminfo", "rb") as file:
            for line in file.read(512).splitlines():
                name, _, value = line.partition(b":")
                fields[name] = value.split()[0] if value.split() else b""
        return 1024.0 * (int(fields[b"MemTotal"]) - int(fields[b"MemAvailable"]))
    except (OSError, KeyError, ValueError):
        return 0.0
