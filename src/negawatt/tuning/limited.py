"""`limited`: the machine is held to a candidate's limits while its windows run, and to nothing in between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from negawatt.errors import UsageError
from negawatt.limits.ceiling import UNITS, Kind
from negawatt.limits.hold import hold_in_turn
from negawatt.limits.ladder import against, ladder, limits_of
from negawatt.limits.limits import Limits
from negawatt.profiling.cascade import Runner, engines_of
from negawatt.profiling.window import Job, completions_of, spread
from negawatt.tuning.attempt import SCREEN_TOKENS, answered_in
from negawatt.tuning.cost import Cost
from negawatt.tuning.space import Space

SETTLED_S = 0.3
"""An engine works for so long at least under limits before it is measured: what watches over them is starting
meanwhile."""
CPU, GPU = "cpu", "gpu"
DIMENSIONS: dict[str, tuple[Kind, str]] = {
    "power_caps_w": ("power", CPU), "clocks_mhz": ("clock", CPU),
    "gpu_power_caps_w": ("power", GPU), "gpu_clocks_mhz": ("clock", GPU),
}  # fmt: skip
"""Dimensions of a space → what they limit, of what."""


@contextmanager
def limited(runner: Runner, jobs: Sequence[Job], limits: Limits) -> Iterator[dict[str, Any]]:
    """Hold the machine to limits; without any do nothing.

    All other engines of this process must be idle. What holds on average over some seconds is let settle: the
    engine works for as long before anything is measured.

    Args:
        runner: open and warmed up; opened without limits.
        jobs: to work at meanwhile.

    Returns:
        What is in force, for the record of what really ran.

    Raises:
        EngineError: the system cannot be held to them.
    """
    if not limits:
        yield {}
        return
    with hold_in_turn(limits) as held:
        batch = max(engine.settings.batch for engine in engines_of(runner))
        group = [answered_in(job, SCREEN_TOKENS) for job in spread(jobs, batch)]
        until = time.monotonic() + max(SETTLED_S, held.window_s)
        while time.monotonic() < until:
            completions_of(runner, group)
        yield held.info


def with_limits(space: Space, cost: Cost, kept: Mapping[str, Sequence[float]] | None = None) -> Space:
    """A space with the power caps and clocks that are tried in it: none where it goes by CPU seconds.

    Args:
        space: as it was asked for.
        cost: what the search counts.
        kept: what was decided at the start of a search that is taken up again.

    Raises:
        UsageError: some were asked for by name that cannot be tried here.
    """
    if kept is not None:
        return replace(space, limits={name: tuple(kept[name]) for name in DIMENSIONS if name in kept})
    return replace(space, limits={name: _tried(space, cost, name) for name in DIMENSIONS})


def limits_json(space: Space) -> dict[str, list[float]]:
    """What `with_limits` decided, to keep in a run."""
    return {name: list(found) for name, found in space.limits.items()}


def all_limits(space: Space) -> list[Limits]:
    """Every limit that candidates of a space are held to."""
    return [_limits(name, each) for name, found in space.limits.items() for each in found if each]


def _tried(space: Space, cost: Cost, name: str) -> tuple[float, ...]:
    (kind, device), asked = DIMENSIONS[name], space.limits.get(name)
    elsewhere = any(any(numbers) for numbers in (space.gpu_layers or {}).values())
    if asked is None:
        permitted = cost.in_joules and (device == CPU or elsewhere)
        return (0, *ladder(kind, device)) if permitted else (0,)
    wanted = [each for each in asked if each]
    if wanted and not cost.in_joules:
        raise UsageError(
            f"{name} are tried where a search goes by joules, and this one goes by CPU seconds, which cannot "
            "tell what a limit saves: leave them out"
        )
    if wanted and device == GPU and not elsewhere:
        raise UsageError(f"{name} are for candidates with layers on a GPU, and here there are none")
    for each in wanted:
        if why := against(_limits(name, each)):
            raise UsageError(f"{name}: {each:g} {UNITS[kind]} cannot be tried here: {why}")
    return asked


def _limits(name: str, value: float) -> Limits:
    kind, device = DIMENSIONS[name]
    return limits_of(kind, value, device)
