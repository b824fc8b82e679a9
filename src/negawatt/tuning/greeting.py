"""Greetings: what a search asks a node before it takes part, and whether by the answer it may measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from negawatt.engine.backends import engines
from negawatt.limits.ladder import against
from negawatt.limits.limits import Limits
from negawatt.meter import fingerprint
from negawatt.tuning.cost import Cost, counters_here


def greeting(names: Iterable[str], cost: Cost, limits: Sequence[Limits]) -> dict[str, Any]:
    """The errand.

    Args:
        names: of the engines that are searched.
        cost: what is counted.
        limits: that candidates are held to.
    """
    asked = [asdict(each) for each in limits]
    return {"do": "greet", "engines": sorted(names), "counters": cost.in_joules, "limits": asked}


def greeted(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of this machine."""
    return {
        "machine": fingerprint(),
        "engines": {each["name"]: each["version"] for each in engines(job["engines"])},
        "counters": list(counters_here()) if job.get("counters") else [],
        "unheld": [why for each in job.get("limits") or () if (why := against(Limits(**each)))],
    }


def why_not_measure(answer: Mapping[str, Any], machine: str, cost: Cost) -> str:
    """Why a node only judges, or nothing.

    Args:
        machine: id of the machines that the search is for.
        cost: what is counted.
    """
    if answer["machine"]["id"] != machine:
        return "is another kind of machine"
    if blind := sorted(set(cost.counters) - set(answer.get("counters") or ())):
        return f"cannot read {blind[0]}"
    if unheld := answer.get("unheld"):
        return f"cannot be held to all limits ({unheld[0]})"
    return ""
