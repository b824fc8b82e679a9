"""`accounts`: what a search cost, in total and for its parts, and when that is paid back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from negawatt.energy import Energy
from negawatt.meter import energy_of_cpu_time
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.trial import Trial


def accounts(
    trials: Sequence[Trial],
    makings: Sequence[Mapping[str, Any]],
    energy: Energy,
    *,
    cpu_s: float,
    own_share: float,
    duration_s: float,
    result: Mapping[str, Any],
    tokens_per_day: float | None,
    cost: Cost = CPU_SECONDS,
) -> dict[str, Any]:
    """The ``search`` part of the ``tune`` document.

    Args:
        trials: all of them.
        makings: records of the passes applied, by this search and not by an earlier one.
        energy, cpu_s, duration_s: of all of it: engines, passes, and our own bookkeeping.
        own_share: of the CPU seconds of this sitting, those of our own process.
        result: with the documents of baseline and best, and the verdict.
        tokens_per_day: generated tokens of the user's traffic; None where that was not told.
        cost: what is counted: the search is paid back in the same.
    """
    spent = energy.value_j if cost.in_joules else cpu_s
    paid = _payback_tokens(spent, result, "joules_per_token" if cost.in_joules else "cpu_s_per_token")
    states = [t.state for t in trials]
    made_s = sum(float(m.get("cpu_s_spent") or 0.0) for m in makings)
    days = paid / tokens_per_day if paid is not None and tokens_per_day else None
    return {
        "trials": len(trials),
        "pruned": states.count("pruned"),
        "failed": states.count("failed"),
        "energy": energy.to_json(),
        "cpu_s": cpu_s,
        "duration_s": duration_s,
        "payback_tokens": paid,
        "tokens_per_day": tokens_per_day,
        "payback_days": days,
        "compression": {
            "passes": len(makings),
            "cpu_s": made_s,
            "energy": energy_of_cpu_time(made_s).to_json(),
        },
        "engine_share": 1 - own_share,
        "cost": cost.to_json(),
    }


def _payback_tokens(spent: float | None, result: Mapping[str, Any], unit: str) -> int | None:
    """Generated tokens, as the baseline cuts text, until the saving has made up for the search."""
    baseline, best = result["baseline"], result["best"]
    saved = baseline[unit] - best[unit] * best.get("tokens_per_baseline_token", 1.0)
    paid = spent is not None and saved > 0 and result["verdict"]["accepted"]
    return math.ceil(spent / saved) if paid and spent is not None else None
