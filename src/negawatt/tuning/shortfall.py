"""Why a search found nothing: which limit binds, how close anything came, or that nothing can be shown."""

from __future__ import annotations

from collections.abc import Sequence

from negawatt.profiling.quality import Quality
from negawatt.tuning.trial import QUALITY, Trial


def why_nothing(trials: Sequence[Trial]) -> str:
    """A sentence for the verdict.

    Args:
        trials: the baseline's first; no other is feasible and cheaper.
    """
    closest: dict[str, tuple[float, float]] = {}
    for trial in trials:
        for name, (found, limit) in (trial.figures.get("violated") or {}).items():
            if name not in closest or found < closest[name][0]:
                closest[name] = (found, limit)
    if closest:
        told = "; ".join(
            f"{name}: the closest of {len(trials)} trials reached {found:,.4g}, the limit is {limit:,.4g}"
            for name, (found, limit) in closest.items()
        )
        return f"No candidate kept the constraints. {told}."
    dropped = [t for t in trials if QUALITY in t.violations and "quality_drop" in t.figures]
    if dropped:
        best = min(dropped, key=lambda t: t.figures["quality_drop"]["drop"])
        return f"No cheaper candidate kept the quality. The closest was {best.candidate}: {best.reason}."
    failed = [t for t in trials if t.state == "failed"]
    if failed and len(failed) == len(trials) - 1:
        return f"Every candidate failed; the first: {failed[0].candidate}: {failed[0].reason}."
    return "Nothing tried was cheaper than what you have."


def says_nothing(quality: Quality) -> str:
    """A warning where every item has the baseline's same lowest score, below which nothing can fall."""
    values = set(quality.scores.values())
    if len(quality.scores) < 2 or values != {0.0}:
        return ""
    return (
        f"What you run today scores 0 on each of {len(quality.scores)} items ({quality.metric}), so no "
        "candidate can be seen to be worse: this quality set proves nothing; give one that it can answer"
    )
