"""`Expense`: what a search spent in earlier sittings and on other machines, beside what is metered now."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from negawatt.energy import Energy
from negawatt.meter import Meter, energy_of_cpu_time
from negawatt.run import Run
from negawatt.tuning.node import host

SPENT_EVERY_S = 5.0
"""How often what a sitting has spent so far is kept: a kill loses no more of the account than that."""


class Expense:
    """Adds up what sittings and errands cost, and keeps it in the run, where later sittings have it from.

    Args:
        run: of the search.
        used_s: seconds of the search so far.

    Attributes:
        cpu_s, energy: of this sitting's errands, without those that this process's meter counts itself.
        own_cpu_s: of that, what is neither an engine's nor a pass's.
        earlier_cpu_s, earlier_energy, earlier_s: of earlier sittings, here and elsewhere.
    """

    def __init__(self, run: Run, used_s: Callable[[], float]) -> None:
        self._run, self._used_s = run, used_s
        self._sitting, self._kept_s = secrets.token_hex(4), -math.inf
        self.cpu_s, self.own_cpu_s, self.energy = 0.0, 0.0, Energy.zero()
        last = {r["sitting"]: r for r in run.records("spent")}.values()
        errands = list(run.records("errand"))
        apart = [r for r in errands if not (last and r["counted"])]  # what no meter of a sitting saw
        alone = [r for kind in ("trial", "making") for r in run.records(kind) if "node" not in r]
        own_s = 0.0 if last else sum(float(r.get("cpu_s_spent") or 0.0) for r in alone)  # an older version's
        own = [energy_of_cpu_time(own_s)] if own_s else []
        self.earlier_cpu_s = own_s + sum(float(r["cpu_s"]) for r in (*last, *apart))
        told = (Energy.from_json(r["energy"]) for r in (*last, *apart))
        self.earlier_energy = Energy.total([*own, *told])
        self.earlier_s = max(
            sum(float(r.get("duration_s") or 0.0) for r in alone if r["record"] == "trial"),
            max((float(r["used_s"]) for r in (*last, *errands)), default=0.0),
        )

    def keep(self, meter: Meter) -> None:
        """Keep what this sitting has spent so far, unless that was just done."""
        if time.monotonic() - self._kept_s < SPENT_EVERY_S:
            return
        self._kept_s = time.monotonic()
        so_far = meter.so_far()
        record = {"cpu_s": so_far.cpu_s, "energy": so_far.energy.to_json(), "used_s": self._used_s()}
        self._run.append("spent", {"sitting": self._sitting, **record})

    def add(self, answer: Mapping[str, Any], node: str, do: str) -> None:
        """Take in what an errand cost.

        Args:
            answer: as `negawatt.tuning.node.carried_out` gives it.
            node, do: where, and what was done.
        """
        counted = answer.get("host") == host() and os.getpid() in answer.get("ancestors", ())
        energy = Energy.from_json(answer["energy"]) if "energy" in answer else Energy.zero()
        cpu_s, machine = float(answer["cpu_s"]), answer.get("machine")
        if not counted:
            self.cpu_s, self.energy = self.cpu_s + cpu_s, self.energy + energy
            self.own_cpu_s += float(answer.get("own_cpu_s", 0.0))
        record = {
            "node": node,
            "machine": machine["id"] if isinstance(machine, dict) else machine,
            "do": do,
            "cpu_s": cpu_s,
            "energy": energy.to_json(),
            "duration_s": float(answer.get("duration_s", 0.0)),
            "counted": counted,
            "used_s": self._used_s(),
        }
        self._run.append("errand", record)

    def by_machine(self) -> list[dict[str, Any]]:
        """For each kind of machine that nodes were: how many, their errands, CPU seconds and joules."""
        found: dict[str, dict[str, Any]] = {}
        for record in self._run.records("errand"):
            if not isinstance(record["machine"], str):
                continue  # it could do nothing
            entry = found.setdefault(
                record["machine"], {"nodes": set(), "errands": 0, "cpu_s": 0.0, "energy": Energy.zero()}
            )
            entry["nodes"].add(record["node"])
            entry["errands"] += 1
            entry["cpu_s"] += record["cpu_s"]
            entry["energy"] += Energy.from_json(record["energy"])
        return [
            {**entry, "machine": name, "nodes": len(entry["nodes"]), "energy": entry["energy"].to_json()}
            for name, entry in found.items()
        ]
