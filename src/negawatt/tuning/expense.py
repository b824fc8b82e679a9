"""`Expense`: what a search spent in earlier sittings and on other machines, beside what is metered now."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from negawatt.energy import Energy
from negawatt.meter import energy_of_cpu_time
from negawatt.run import Run
from negawatt.tuning.node import host


class Expense:
    """Adds up errands, and keeps each in the run, where it has every earlier sitting from.

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
        self.cpu_s, self.own_cpu_s, self.energy = 0.0, 0.0, Energy.zero()
        here = [r for kind in ("trial", "making") for r in run.records(kind) if "node" not in r]
        errands = list(run.records("errand"))
        own_s = sum(float(r.get("cpu_s_spent") or 0.0) for r in here)
        own = [energy_of_cpu_time(own_s)] if own_s else []
        self.earlier_cpu_s = own_s + sum(float(r["cpu_s"]) for r in errands)
        self.earlier_energy = Energy.total([*own, *(Energy.from_json(r["energy"]) for r in errands)])
        self.earlier_s = max(
            sum(float(r.get("duration_s") or 0.0) for r in here if r["record"] == "trial"),
            max((float(r["used_s"]) for r in errands), default=0.0),
        )

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
