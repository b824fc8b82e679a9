"""The model of last resort: energy from CPU time, as a band over every published curve that applies.

Three public models give the power of a processor as a function of its utilisation:

- Teads (2021): TDP times 0.12, 0.32, 0.75, 1.02 at 0, 10, 50, 100 % load, linear between.
- Boavizta: ``a·ln(b·(u + c)) + d`` watts at load `u` in %, fitted to three families of Xeon.
- Cloud Carbon Footprint: ``min + u·(max − min)`` watts a virtual CPU, by cloud.

They disagree more than twofold, so a single figure would pretend to know. What is charged to a
process is, for every CPU-second, the idle share of the thread it kept busy plus its share of the
dynamic power of the chip, ``P(0) + (P(U) − P(0)) / U`` a thread. The load `U` of the whole chip
is not visible from a virtual machine or container, so half and full load are both in the band.
The value is the median of all figures at the usual TDP; it is proportional to CPU time, so a
neighbour that slows the process down does not change what the process is charged.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from negawatt.energy import Energy, Provenance
from negawatt.errors import SensorError
from negawatt.meter.machine import cpu_identity
from negawatt.meter.sensor import Boundary, Counter, Reading, Sensor
from negawatt.meter.tdp import ThreadPower, thread_power

_TEADS = ((0.0, 0.12), (0.1, 0.32), (0.5, 0.75), (1.0, 1.02))
_BOAVIZTA = {
    "Platinum": (171.1813, 0.0354, 36.8953, -10.1336),
    "Gold": (35.5688, 0.2438, 9.6694, -0.6087),
    "Silver": (20.7794, 0.3043, 8.4241, 0.8613),
}
_CLOUDS = {"AWS": (0.74, 3.5), "GCP": (0.71, 4.26), "Azure": (0.78, 3.76)}
_CHIP_LOADS = (0.5, 1.0)

Curve = Callable[[float], float]
"""Watts of one hardware thread when the chip is loaded to a share in [0, 1]."""


def teads(tdp_w: float, load: float) -> float:
    """Watts at `load` (0 to 1) of a chip, or of a share of one, whose TDP is `tdp_w`."""
    for (left, low), (right, high) in pairwise(_TEADS):
        if load <= right:
            return tdp_w * (low + (high - low) * (load - left) / (right - left))
    return tdp_w * _TEADS[-1][1]


def boavizta(family: str, load: float) -> float:
    """Watts at `load` (0 to 1) of a whole Xeon ``Platinum``, ``Gold`` or ``Silver``; at least 1 W."""
    a, b, c, d = _BOAVIZTA[family]
    return max(1.0, a * math.log(b * (100 * load + c)) + d)


def cloud(provider: str, load: float) -> float:
    """Watts at `load` (0 to 1) of one virtual CPU of ``AWS``, ``GCP`` or ``Azure``."""
    low, high = _CLOUDS[provider]
    return low + load * (high - low)


@dataclass(frozen=True, slots=True)
class CpuPower:
    """Watts that one busy hardware thread is charged, over all models.

    Attributes:
        low_w, value_w, high_w: charged for each CPU-second, idle share included.
        idle_w: the part of `value_w` that the thread would have drawn anyway.
        idle_low_w, idle_high_w: its band.
        models: the curves that the band spans.
        basis: where the processor's TDP comes from.
        boundary: where the joules are counted.
        covers: what the watts hold besides the processor: ``dram``, ``disk``.
        at_load: tells the watts at a known load of the whole machine (0 to 1), where they depend on it.
        reason: what its estimates say of themselves.
    """

    low_w: float
    value_w: float
    high_w: float
    idle_w: float
    idle_low_w: float
    idle_high_w: float
    models: tuple[str, ...]
    basis: str
    boundary: Boundary = "chip"
    covers: tuple[str, ...] = ("cpu",)
    at_load: Callable[[float], CpuPower] | None = field(default=None, compare=False, repr=False)
    reason: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", f"CPU time × {', '.join(self.models)} ({self.basis})")

    @property
    def summary(self) -> str:
        """One sentence for people."""
        return (
            f"estimates {self.value_w:.1f} W a busy core ({self.low_w:.1f}–{self.high_w:.1f}) "
            f"by {self.models[0] if len(self.models) == 1 else f'{len(self.models)} models'}; {self.basis}"
        )

    def energy(self, cpu_s: float, load: float | None = None) -> Energy:
        """Joules charged for `cpu_s` seconds of CPU time, their idle share included.

        Args:
            cpu_s: CPU seconds.
            load: of the whole machine meanwhile, 0 to 1, where that is known.
        """
        if self.at_load is not None and load is not None:
            return self.at_load(load).energy(cpu_s)
        return Energy.estimated(self.value_w * cpu_s, self.low_w * cpu_s, self.high_w * cpu_s, self.reason)

    def idle(self, cpu_s: float) -> Energy:
        """The idle share of `energy`."""
        return Energy.estimated(
            self.idle_w * cpu_s, self.idle_low_w * cpu_s, self.idle_high_w * cpu_s, self.reason
        )


def cpu_power(cpu_model: str, maker: str = "", family: int = 0, model: int = 0) -> CpuPower:
    """The band for a processor, from its name and, failing that, its generation."""
    part = thread_power(cpu_model, maker, family, model)
    usual = _curves(cpu_model, part, part.usual_w)
    every = [c for w in (part.low_w, part.usual_w, part.high_w) for c in _curves(cpu_model, part, w).values()]
    charged = [_charged_w(curve, load) for curve in every for load in _CHIP_LOADS]
    idle = [curve(0.0) for curve in every]
    return CpuPower(
        low_w=min(charged),
        value_w=statistics.median(_charged_w(c, load) for c in usual.values() for load in _CHIP_LOADS),
        high_w=max(charged),
        idle_w=statistics.median(c(0.0) for c in usual.values()),
        idle_low_w=min(idle),
        idle_high_w=max(idle),
        models=tuple(usual),
        basis=part.basis,
    )


def _charged_w(curve: Curve, chip_load: float) -> float:
    idle_w = curve(0.0)
    return idle_w + (curve(chip_load) - idle_w) / chip_load


def _curves(cpu_model: str, part: ThreadPower, thread_tdp_w: float) -> dict[str, Curve]:
    """Every model that applies to the processor, as watts of one of its threads."""
    curves: dict[str, Curve] = {"Teads": lambda u: teads(thread_tdp_w, u)}
    own = next((f for f in _BOAVIZTA if f.lower() in cpu_model.lower()), None)
    for family in [own] if own else _BOAVIZTA:
        # The curve of this very family in its own watts, or else its shape brought to this TDP.
        threads = part.part_threads if own else None
        scale = 1 / threads if threads else thread_tdp_w / boavizta(family, 1.0)
        curves[f"Boavizta {family}"] = lambda u, f=family, s=scale: s * boavizta(f, u)  # type: ignore[misc]
    if not any(word in cpu_model for word in ("Core", "Ryzen", "Ultra", "Apple")):
        for provider in _CLOUDS:
            curves[f"Cloud Carbon Footprint {provider}"] = lambda u, p=provider: cloud(p, u)  # type: ignore[misc]
    return curves


@cache
def this_cpu_power() -> CpuPower:
    """The band for the processor of this machine."""
    cpu = cpu_identity()
    return cpu_power(cpu.model_name, cpu.maker, cpu.family, cpu.model)


class CpuTimeSensor(Sensor):
    """The model as a sensor: its counter advances with CPU time.

    Args:
        cpu_time: cumulative CPU seconds of whatever is measured; by default the busy time of all
            processors this machine has.
        power: the watts to charge; by default those of this machine's processor.
    """

    name = "cpu-time model"

    def __init__(self, cpu_time: Callable[[], float] | None = None, power: CpuPower | None = None) -> None:
        self._cpu_time = cpu_time or _busy_s
        self._power = power

    def read(self) -> Reading:
        power = self._power or this_cpu_power()
        tick_s = 1 / os.sysconf("SC_CLK_TCK") if self._cpu_time is _busy_s else 1e-6
        counter = Counter(
            energy_j=self._cpu_time() * power.value_w,
            resolution_j=tick_s * power.value_w,
            refresh_s=tick_s,
            band=(power.low_w / power.value_w, power.high_w / power.value_w),
            provenance=Provenance.ESTIMATED,
        )
        return Reading(time.monotonic(), {"cpu": counter})


def _busy_s() -> float:
    from negawatt.meter.process import machine_time

    try:
        return machine_time().busy_s
    except OSError as exc:
        raise SensorError(f"/proc/stat cannot be read: {exc}") from exc
