"""A machine with power limits and clocks, as files in a folder and a double of NVML."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from negawatt.limits.cpu import CPUFREQ, POWERCAP
from negawatt.testing.cpufreq import CpufreqTree
from negawatt.testing.powercap import PowercapTree


def machine(root: Path) -> Path:
    """Two packages of 165 W, one of which may draw 120 W, and fast and thrifty cores; returns `root`."""
    tree = PowercapTree.server(root / POWERCAP)
    tree.limit("intel-rapl:0", 165_000_000, most_uw=165_000_000)
    tree.limit("intel-rapl:1", 120_000_000, most_uw=165_000_000)
    tree.add("intel-rapl-mmio:0", "package-0")
    tree.limit("intel-rapl-mmio:0", 200_000_000)
    clocks = CpufreqTree(root / CPUFREQ)
    clocks.add(0, 800_000, 4_800_000)
    clocks.add(8, 800_000, 1_800_000)
    return root


def kept(root: Path) -> dict[str, str]:
    """What every file of the machine holds."""
    return {str(f.relative_to(root)): f.read_text() for f in sorted(root.rglob("*")) if f.is_file()}


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user whom the kernel refuses what only root may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
