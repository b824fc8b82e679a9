"""`Limits`: a power cap and a clock ceiling, and what has to be changed for them.

A limit holds for the whole machine, for as long as `negawatt.limits.hold.hold` keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.errors import EngineError, SensorError
from negawatt.limits.ceiling import UNITS, Ceiling, Kind
from negawatt.limits.journal import Change
from negawatt.limits.system import System
from negawatt.meter.sensor import SensorDenied


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine runs under; false where that is nothing.

    Attributes:
        power_cap_w: of each processor package or GPU; None leaves it as it is.
        clock_mhz: the highest of each processor or GPU; None leaves it as it is.
        device: as in `negawatt.engine.Settings`.
    """

    power_cap_w: float | None = None
    clock_mhz: int | None = None
    device: str = "cpu"

    @property
    def wanted(self) -> dict[Kind, float]:
        asked: dict[Kind, float | None] = {"power": self.power_cap_w, "clock": self.clock_mhz}
        return {kind: value for kind, value in asked.items() if value is not None}

    def __bool__(self) -> bool:
        return bool(self.wanted)

    def __str__(self) -> str:
        if not self:
            return "no limits"
        return " and ".join(f"at most {value:g} {UNITS[kind]}" for kind, value in self.wanted.items())


@dataclass(frozen=True)
class Plan:
    """Attributes:
    changes: to make, in this order.
    steps: for each by how much what is read afterwards may differ, in the system's unit.
    told: what comes of it, in words.
    window_s: limits hold on average over so many seconds.
    """

    changes: tuple[Change, ...] = ()
    steps: tuple[int, ...] = ()
    told: tuple[str, ...] = ()
    window_s: float = 0.0


def planned(limits: Limits, system: System) -> Plan:
    """What has to be changed; nothing is.

    Raises:
        EngineError: the system has no such limit or does not permit it, or it would lower nothing or too
            far.
    """
    found = Plan()
    for kind, value in limits.wanted.items():
        try:
            own = _lowered(system.ceilings(kind, limits.device), value)
        except SensorError as exc:
            raise refused(exc) from exc
        found = Plan(
            found.changes + own.changes, found.steps + own.steps, found.told + own.told,
            max(found.window_s, own.window_s),
        )  # fmt: skip
    return found


def _lowered(ceilings: Sequence[Ceiling], wanted: float) -> Plan:
    changes, steps, told = [], [], []
    for each in ceilings:
        if wanted >= each.now:
            continue  # it is as low already: a limit never raises
        if wanted < each.lowest:
            raise EngineError(f"{wanted:g} {each.unit} are too few; there can be {each}")
        changes.append(Change(each.place, each.kept, round(wanted / each.per_unit)))
        steps.append(round(each.step / each.per_unit))
        if each.switch is not None:
            changes.append(Change(each.switch, 0, 1))
            steps.append(0)
        before = "no limit" if each.switch else f"{each.now:.4g} {each.unit}"
        averaged = f" on average over {each.window_s:.3g} s" if each.window_s else ""
        told.append(f"{each.part} at most {wanted:g} {each.unit}{averaged} (before: {before})")
    if not changes:
        could = "; ".join(map(str, ceilings))
        raise EngineError(f"{wanted:g} {ceilings[0].unit} would lower nothing; there can be {could}")
    return Plan(tuple(changes), tuple(steps), tuple(told), max(each.window_s for each in ceilings))


def refused(exc: SensorError) -> EngineError:
    """The same, as what an engine says that cannot run so."""
    return EngineError(f"{exc}; {exc.remedy}" if exc.remedy else str(exc))


def statuses(system: System | None = None) -> list[dict[str, Any]]:
    """What can be limited here, as rows for ``negawatt doctor``: name, status, reason, remedy."""
    system = system or System()
    asked: tuple[tuple[str, Kind, str], ...] = (
        ("cpu power", "power", "cpu"), ("cpu clock", "clock", "cpu"),
        ("gpu power", "power", "gpu"), ("gpu clock", "clock", "gpu"),
    )  # fmt: skip
    rows = [{"name": name, **_status(system, kind, device)} for name, kind, device in asked]
    system.close()
    return rows


def _status(system: System, kind: Kind, device: str) -> dict[str, str]:
    try:
        reason = "; ".join(map(str, system.ceilings(kind, device)))
    except SensorError as exc:
        status = "denied" if isinstance(exc, SensorDenied) else "absent"
        return {"status": status, "reason": str(exc), "remedy": exc.remedy}
    return {"status": "ok", "reason": f"can be lowered: {reason}", "remedy": ""}
