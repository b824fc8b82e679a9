"""Ceilings of processors: RAPL's power limits and cpufreq's clocks, as Linux shows them.

Follows Documentation/power/powercap/powercap.rst and Documentation/admin-guide/pm/cpufreq.rst of the kernel.
Not yet run on hardware that permits them: tested against the same files in an ordinary folder only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from negawatt.errors import SensorError
from negawatt.limits.ceiling import Ceiling
from negawatt.meter.rapl import zone_component
from negawatt.meter.sensor import SensorAbsent, SensorDenied
from negawatt.meter.sysfs import number, text

POWERCAP = "sys/class/powercap"
CPUFREQ = "sys/devices/system/cpu/cpufreq"
LEAST_SHARE, LEAST_W = 0.1, 5.0
"""Of the power that a package is made for, and at all. Capped further down the machine crawls."""
POWER_STEP_W = 0.25
"""RAPL counts power in units of 1/8 W, or of 1/4 W at the coarsest in use."""
CLOCK_STEP_MHZ = 50.0
"""Half a step of the 100 MHz by which clocks go up."""


def packages(root: Path) -> list[Ceiling]:
    """The long-term power limit of every processor package.

    Memory's and cores' own limits are left alone, as is the memory-mapped twin (``intel-rapl-mmio``): the
    lower of the two is in force, and a cap only lowers.

    Raises:
        SensorAbsent: there is none here.
        SensorDenied: one may not be set; ``remedy`` tells what would allow it.
        SensorError: a file holds nonsense.
    """
    found = []
    for zone in _listed(root / POWERCAP):
        if "-rapl:" not in zone or zone.count(":") != 1:
            continue
        folder = root / POWERCAP / zone
        component, _ = zone_component(text(folder / "name"), zone, {})
        if component.startswith("cpu/") and (file := _long_term(folder)) is not None:
            found.append(_package(root, folder, file, component))
    if not found:
        raise SensorAbsent(
            f"no package has a power limit under {root / POWERCAP}",
            remedy="on a physical machine of Intel's load the driver (sudo modprobe intel_rapl_msr); "
            "AMD's counters have no limits, and a virtual machine gets neither from its host",
        )
    return found


def _long_term(folder: Path) -> Path | None:
    """The file of the limit that holds over seconds; None where the zone has no such."""
    for name in sorted(folder.glob("constraint_*_name")):
        if text(name) == "long_term":
            return name.with_name(name.name.replace("_name", "_power_limit_uw"))
    return None


def _package(root: Path, folder: Path, file: Path, component: str) -> Ceiling:
    kept = number(file)
    constraint = file.name.removesuffix("power_limit_uw")
    designed = _number_or(folder / f"{constraint}max_power_uw", 0)
    off = _number_or(folder / "enabled", 1) == 0
    refuse_unwritable(file, root / POWERCAP / "*" / file.name)
    if off:
        refuse_unwritable(folder / "enabled", root / POWERCAP / "*" / "enabled")
    return Ceiling(
        part=component, kind="power", place=str(file.relative_to(root)), kept=kept,
        now=math.inf if off else kept * 1e-6, lowest=max(LEAST_W, LEAST_SHARE * designed * 1e-6),
        per_unit=1e-6, step=POWER_STEP_W, switch=str((folder / "enabled").relative_to(root)) if off else None,
        window_s=_number_or(folder / f"{constraint}time_window_us", 0) * 1e-6,
    )  # fmt: skip


def policies(root: Path) -> list[Ceiling]:
    """The highest clock of every group of processors that share one.

    Raises:
        SensorAbsent, SensorDenied, SensorError: as for `packages`.
    """
    found = []
    for policy in _listed(root / CPUFREQ):
        folder = root / CPUFREQ / policy
        file = folder / "scaling_max_freq"
        if not policy.startswith("policy") or not file.exists():
            continue
        kept = number(file)
        least = max(number(folder / "cpuinfo_min_freq"), _number_or(folder / "scaling_min_freq", 0))
        refuse_unwritable(file, root / CPUFREQ / "policy*" / file.name)
        place = str(file.relative_to(root))
        found.append(Ceiling(policy, "clock", place, kept, kept * 1e-3, least * 1e-3, 1e-3, CLOCK_STEP_MHZ))
    if not found:
        raise SensorAbsent(
            f"no clock can be set under {root / CPUFREQ}",
            remedy="a virtual machine gets none from its host; on a physical one a cpufreq driver is missing",
        )
    return found


def refuse_unwritable(file: Path, alike: Path) -> None:
    """
    Args:
        alike: pattern of all files like it, for the command that would allow it.

    Raises:
        SensorDenied: this process may not write it.
    """
    effective = os.access in os.supports_effective_ids
    if os.access(file, os.W_OK, effective_ids=effective):
        return
    if os.statvfs(file).f_flag & os.ST_RDONLY:
        raise SensorDenied(
            f"{file} is on a file system that cannot be written to here",
            remedy="a container needs /sys mounted writable (docker run --privileged)",
        )
    raise SensorDenied(
        f"permission to write {file} is denied",
        remedy=f"sudo chmod a+w {alike} (until the machine starts anew), or run as root",
    )


def _number_or(file: Path, otherwise: int) -> int:
    """What a file holds that not every kernel has, or may be asked for."""
    try:
        return number(file)
    except SensorError:
        return otherwise


def _listed(folder: Path) -> Sequence[str]:
    try:
        return sorted(os.listdir(folder), key=lambda name: (len(name), name))
    except OSError:
        return ()
