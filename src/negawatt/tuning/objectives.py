"""What a search may want little of beside joules, and what a trial says of it.

Grams and money are no objectives of their own: on one machine both are joules times a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from negawatt.errors import UsageError
from negawatt.tuning.trial import Trial
from negawatt.tuning.verdict import pareto

ENERGY = "energy"
BETTER = 0.01
"""Share of the cost that makes an improvement."""
DROP_SCALE = 0.05
"""A drop of quality that counts as much as a factor of e in anything else."""


def _percentile(name: str) -> Callable[[Trial], float | None]:
    return lambda trial: _log((trial.figures.get(name) or {}).get("p50"))


def _log(value: float | None) -> float | None:
    return math.log(value) if value else None


def _drop(trial: Trial) -> float | None:
    """Relative to the baseline, which has none itself."""
    judged = trial.figures.get("quality_drop")
    if judged is not None:
        return float(judged["drop"]) / DROP_SCALE
    return 0.0 if trial.number == 0 else None


OBJECTIVES: dict[str, Callable[[Trial], float | None]] = {
    ENERGY: lambda trial: _log(trial.cost),
    "quality": _drop,
    "ttft": _percentile("ttft_ms"),
    "tpot": _percentile("tpot_ms"),
    "memory": lambda trial: _log(trial.figures.get("peak_rss_bytes")),
}
"""Name → value of a trial, lower is better, on a scale where a step of 1 is much; None where unknown."""


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The objectives, joules first, each once.

    Raises:
        UsageError: there is no such objective.
    """
    for name in names:
        if name in ("carbon", "cost"):
            raise UsageError(f"on one machine {name} is joules times a rate: energy stands for it")
        if name not in OBJECTIVES:
            raise UsageError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    return tuple(dict.fromkeys((ENERGY, *names)))


def values(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """One value for each objective; None where one is not known, as of a trial that failed."""
    found = [OBJECTIVES[name](trial) for name in objectives]
    known = tuple(value for value in found if value is not None)
    return known if len(known) == len(found) else None


def frontier(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Trials that keep the constraints and that no other beats in all objectives."""
    known = [(t, found) for t in trials if t.feasible and (found := values(t, objectives)) is not None]
    return [trial for trial, _ in pareto(known, lambda pair: pair[1])]


def unbeaten(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Trials that no other beats in all objectives; in cost and quality where only joules were asked.

    Quality is the paired difference to the baseline: trials are judged on different numbers of items.
    """
    if len(objectives) > 1:
        return frontier(trials, objectives)

    def drop(trial: Trial) -> float:
        return float((trial.figures.get("quality_drop") or {}).get("drop", 0.0))

    judged = [t for t in trials if t.state == "complete" and t.figures.get("quality")]
    return pareto(judged, lambda t: (t.cost or math.inf, drop(t)))


def since_improvement(trials: Sequence[Trial], objectives: Sequence[str]) -> int:
    """Trials since the last that was cheaper than all before it, or that is on the frontier of several."""
    if len(objectives) > 1:
        best = frontier(trials, objectives)
        joined = [number for number, trial in enumerate(trials) if trial in best]
        return len(trials) - 1 - joined[-1] if joined else len(trials)
    least, since = math.inf, 0
    for trial in trials:
        if trial.feasible and trial.cost is not None and trial.cost < (1 - BETTER) * least:
            least, since = trial.cost, 0
        else:
            since += 1
    return since
