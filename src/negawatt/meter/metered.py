"""`metered`: a decorator that measures every call of a function."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, overload

from negawatt.meter.measurement import Measurement
from negawatt.meter.meter import Meter, active_meter

P = ParamSpec("P")
R = TypeVar("R")
Report = Callable[[Measurement], None]

_log = logging.getLogger("negawatt")


@overload
def metered(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def metered(
    *, name: str | None = None, report: Report | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def metered(
    function: Callable[P, R] | None = None, *, name: str | None = None, report: Report | None = None
) -> Callable[..., Any]:
    """Measure every call of a function, plain or ``async``.

    Inside the block of a `Meter`, a call is a stage of it. Elsewhere it is measured on its own and
    handed to `report`, which by default logs one line to the logger ``negawatt``.

    Args:
        name: what the stage is called; by default the function's own name.
        report: called with the measurement of every call made outside a meter's block.
    """
    if function is None:
        return functools.partial(metered, name=name, report=report)
    title = name or function.__qualname__

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def measured_async(*args: Any, **kwargs: Any) -> Any:
            with _measured(title, report):
                return await function(*args, **kwargs)

        return measured_async

    @functools.wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        with _measured(title, report):
            return function(*args, **kwargs)

    return measured


@contextmanager
def _measured(title: str, report: Report | None) -> Iterator[None]:
    outer = active_meter()
    if outer is not None:
        with outer.stage(title):
            yield
        return
    meter = Meter()
    try:
        with meter:
            yield
    finally:
        if report is not None:
            report(meter.measurement)
        else:
            _log.info("%s: %s in %.3f s", title, meter.measurement.energy, meter.measurement.duration_s)
