"""`ladder`: a few limits that are worth trying here, between the lowest and the highest permitted."""

from __future__ import annotations

import math

from negawatt.errors import EngineError, SensorError
from negawatt.limits.ceiling import Kind
from negawatt.limits.limits import Limits, planned
from negawatt.limits.system import System

SHARES = (0.8, 0.6)
"""Of the way from the lowest to the highest that is permitted."""
ROUNDED_TO = {"power": 1, "clock": 100}
"""W and MHz: finer steps tell nothing apart."""


def ladder(kind: Kind, device: str = "cpu", system: System | None = None) -> tuple[int, ...]:
    """Limits in W or MHz, the highest first; none where this system does not permit any.

    Where parts of the machine have different ceilings, the highest of them counts: a limit never raises, so
    those that are as low already stay as they are.
    """
    system = system or System()
    try:
        ceilings = system.ceilings(kind, device)
    except SensorError:
        return ()
    known = [c.now for c in ceilings if math.isfinite(c.now)]
    if not known:
        return ()
    highest = max(known)
    lowest, step = max(c.lowest for c in ceilings), ROUNDED_TO[kind]
    wanted = [round((lowest + share * (highest - lowest)) / step) * step for share in SHARES]
    return tuple(dict.fromkeys(each for each in wanted if not against(limits_of(kind, each, device), system)))


def against(limits: Limits, system: System | None = None) -> str:
    """Why this system cannot be held to limits, or nothing."""
    try:
        planned(limits, system or System())
    except EngineError as exc:
        return str(exc)
    return ""


def limits_of(kind: Kind, value: float, device: str) -> Limits:
    """One limit in W or MHz."""
    if kind == "power":
        return Limits(power_cap_w=float(value), device=device)
    return Limits(clock_mhz=int(value), device=device)
