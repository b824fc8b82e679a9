"""`accounts`: what a search cost, in total and for its parts, and when that is paid back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from negawatt.energy import Energy
from negawatt.meter import energy_of_cpu_time
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
) -> dict[str, Any]:
    """The ``search`` part of the ``tune`` document.

    Args:
        trials: all of them.
        makings: records of the passes applied, by this search and not by an earlier one.
        energy, cpu_s, duration_s: of all of it: engines, passes, and our own bookkeeping.
        own_share: of the CPU seconds of this sitting, those of our own process.
        result: with the documents of baseline and best, and the verdict.
        tokens_per_day: generated tokens of the user's traffic; None where that was not told.
    """
    paid = _payback_tokens(cpu_s, result)
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
    }


def _payback_tokens(cpu_s: float, result: Mapping[str, Any]) -> int | None:
    """Generated tokens, as the baseline cuts text, until the saving has made up for the search."""
    baseline, best = result["baseline"], result["best"]
    saved = baseline["cpu_s_per_token"] - best["cpu_s_per_token"] * best.get("tokens_per_baseline_token", 1.0)
    return math.ceil(cpu_s / saved) if result["verdict"]["accepted"] and saved > 0 else None
