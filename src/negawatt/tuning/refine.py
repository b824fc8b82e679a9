"""`refined`: what is to be proved in its cheapest variant, before its proof is paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from negawatt.errors import UsageError
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import pruned
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.space import Space
from negawatt.tuning.study import Study
from negawatt.tuning.trial import Trial

BETTER = 0.97
"""A variant whose first look costs more than this times the present one's is none: looks are noisy."""
LEVERS = ("speculation", "kv_cache", "threads", "cores", "flash_attention")
"""The last part of the names of dimensions that leave the weights as they are, the most telling first."""


def refined(
    study: Study,
    trial: Trial,
    allowed: Callable[[Candidate], bool],
    time_left: Callable[[], float],
    tick: Callable[[str], None],
) -> Trial:
    """The cheapest that is found by changing one lever after the other, each by a first look.

    The search may have tried a single way of running these weights, which it then had no reason to vary:
    something else cost less. Coordinate descent, each variant looked at once.

    Args:
        study: what was tried; looks are added to it.
        trial: to begin with.
        allowed: whether a variant may take its place.
        time_left: seconds; nothing is looked at when they are over.
        tick: told what goes on.
    """
    best = trial
    for lever in LEVERS:
        for variant in variants(study.space, best.candidate, lever):
            if not allowed(variant):
                continue
            found = next((t for t in study.trials if t.candidate == variant), None)
            if found is None and time_left() > 0:
                tick(f"variant of what is proved first: {variant}")
                seen = study.look_at(variant) or study.look(variant)
                found = pruned(variant, seen, "a variant, looked at") if isinstance(seen, Look) else seen
                study.keep(found, None)
                found = study.trials[-1]
            if found is None or found.cost is None or found.violations:
                continue
            if found.cost < BETTER * (best.cost or 0.0):
                best = found
    return best


def variants(space: Space, candidate: Candidate, lever: str) -> Iterator[Candidate]:
    """Points of a space that differ in one lever, and in what hangs on it; none outside the space."""
    try:
        point = space.parameters(candidate)
    except UsageError:
        return  # a cascade, or what earlier runs brought along
    offered: dict[str, Sequence[Any]] = {}

    def as_before(name: str, choices: Sequence[Any]) -> Any:
        offered[name] = choices
        return point[name]

    space.pick(as_before)
    for changed in [name for name in offered if name.rpartition(".")[2] == lever]:
        for choice in offered[changed]:
            if choice != point[changed]:
                yield space.nearest({**point, changed: choice})
