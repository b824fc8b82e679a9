"""The CPU-time model with this machine's own power curve in place of the published ones.

Curves are kept under ``NEGAWATT_HOME/curves``, one file a machine. A machine uses its own; failing
that, the newest of a machine with the same processor, whose figures hold for each of its hardware
threads: so a virtual machine, whose load the host does not show and which has no counters, uses
the curve of its host.
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path

from negawatt.errors import NegawattError
from negawatt.home import home, write_json
from negawatt.meter.cputime import CpuPower, this_cpu_power
from negawatt.meter.curve import PowerCurve
from negawatt.meter.machine import fingerprint

_SAME = ("cpu", "cpu_family", "cpu_model", "architecture")
"""Facts that two machines of one type share."""


def save_curve(curve: PowerCurve) -> Path:
    """Keep a curve, in place of an older one of the same machine; return the file."""
    path = _folder() / f"{curve.machine['id']}.json"
    write_json(path, curve.to_json())
    _power_of.cache_clear()
    return path


def load_curve() -> PowerCurve | None:
    """This machine's curve, or else the newest of a machine with the same processor; None without one.

    Raises:
        NegawattError: a file is damaged.
    """
    here = fingerprint()
    own = _folder() / f"{here['id']}.json"
    if own.exists():
        return read_curve(own)
    curves = [read_curve(path) for path in sorted(_folder().glob("*.json"))]
    alike = [curve for curve in curves if same_type(curve)]
    return max(alike, key=lambda curve: curve.measured, default=None)


def same_type(curve: PowerCurve) -> bool:
    """Whether a curve was measured on a processor like this machine's."""
    here = fingerprint()
    return all(curve.machine.get(fact) == here[fact] for fact in _SAME)


def read_curve(path: Path) -> PowerCurve:
    """Read a curve from a file.

    Raises:
        NegawattError: it cannot be read, or holds no power curve.
    """
    try:
        return PowerCurve.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise NegawattError(f"{path} holds no power curve that can be used ({why})") from exc


def import_curve(path: Path) -> Path:
    """Keep a curve that was exported on another machine with the same processor; return the file.

    Raises:
        NegawattError: it cannot be read, holds no power curve, or is of another processor.
    """
    curve = read_curve(path)
    if not same_type(curve):
        raise NegawattError(
            f"{path} is of {curve.machine.get('cpu')}, and the processor here is {fingerprint()['cpu']}; "
            "calibrate on a machine with this processor"
        )
    return save_curve(curve)


@cache
def _power_of(folder: Path) -> tuple[CpuPower, str]:
    try:
        curve = load_curve()
    except NegawattError as exc:  # what is measured must not fail because of the meter
        return this_cpu_power(), f"{exc}; calibrate again, or delete it"
    return (this_cpu_power() if curve is None else curve_power(curve)), ""


def power_here() -> tuple[CpuPower, str]:
    """Watts to charge for CPU time on this machine, by its curve or else the published ones.

    The second is a sentence on why a curve that is there could not be used, or empty.
    """
    return _power_of(_folder())


def curve_power(curve: PowerCurve) -> CpuPower:
    """Watts that one busy hardware thread is charged by a curve.

    Where the curve is this machine's own, its load in a window is known and decides. Otherwise the
    band spans one thread busy to all.
    """
    own = curve.machine["id"] == fingerprint()["id"]
    whose = "this machine" if own else "a machine with this processor"
    models = (f"the power curve of {whose}, calibrated {curve.measured[:10]} by {', '.join(curve.source)}",)
    basis = f"{curve.boundary} joules, 90 % interval"
    idle_w, idle_margin_w = curve.power_w(0), curve.margin_w(0)
    least = curve.knots[1][0]  # below the first step the curve is one line: a thread's watts stay the same

    def at(load: float) -> CpuPower:
        return spanning((max(load, least),))

    def spanning(loads: tuple[float, ...]) -> CpuPower:
        """One busy thread bears its share of idle power and its share of the dynamic power."""
        charged = [(idle_w + (curve.power_w(u) - idle_w) / u, curve.margin_w(u) / u) for u in loads]
        per = curve.threads
        return CpuPower(
            low_w=max(0.0, min(watts - margin for watts, margin in charged)) / per,
            value_w=statistics.median(watts for watts, _ in charged) / per,
            high_w=max(watts + margin for watts, margin in charged) / per,
            idle_w=idle_w / per,
            idle_low_w=max(0.0, idle_w - idle_margin_w) / per,
            idle_high_w=(idle_w + idle_margin_w) / per,
            models=models,
            basis=basis,
            boundary=curve.boundary,
            covers=curve.covers,
            at_load=at if own else None,
        )

    return spanning((max(1 / curve.threads, least), 0.5, 1.0))


def _folder() -> Path:
    return home() / "curves"
