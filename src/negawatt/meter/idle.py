"""`IdlePower`: what this machine draws when it does nothing, measured once and kept.

Only what counters tell is measured; the CPU-time model has an idle share of its own. The record is
kept under ``NEGAWATT_HOME/idle``, one file a machine, and used by every later measurement there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.energy import Energy
from negawatt.errors import NegawattError
from negawatt.home import home, write_json
from negawatt.meter.machine import fingerprint


@dataclass(frozen=True)
class IdlePower:
    """Power of every component of a machine at rest.

    Attributes:
        machine: `fingerprint` id of the machine it was measured on.
        measured: local time at which it was, ISO 8601.
        duration_s: for how long.
        busy: share of the processors' time that was busy meanwhile.
        power: energy of one second, by component: its value is the power in watts.
    """

    machine: str
    measured: str
    duration_s: float
    busy: float
    power: Mapping[str, Energy]

    def energy(self, component: str, duration_s: float) -> Energy:
        """What a component draws in `duration_s` at rest; missing if it was not measured."""
        if component not in self.power:
            return Energy.missing(f"the idle power of {component} has not been measured")
        return self.power[component].scaled(duration_s)

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "measured": self.measured,
            "duration_s": self.duration_s,
            "busy": self.busy,
            "power": {name: energy.to_json() for name, energy in self.power.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> IdlePower:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: it is not such a record.
        """
        try:
            return cls(
                machine=str(data["machine"]),
                measured=str(data["measured"]),
                duration_s=float(data["duration_s"]),
                busy=float(data["busy"]),
                power={str(name): Energy.from_json(e) for name, e in data["power"].items()},
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a record of idle power: {exc}") from exc


def save_idle(idle: IdlePower) -> Path:
    """Keep a record for this machine, in place of an older one; return the file."""
    path = _file()
    write_json(path, idle.to_json())
    return path


def load_idle() -> IdlePower | None:
    """The record of this machine, or None if there is none.

    Raises:
        NegawattError: the file is damaged.
    """
    path = _file()
    if not path.exists():
        return None
    try:
        return IdlePower.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as exc:
        raise NegawattError(f"{path} is damaged ({exc}); delete it, or calibrate again") from exc


def _file() -> Path:
    return home() / "idle" / f"{fingerprint()['id']}.json"
