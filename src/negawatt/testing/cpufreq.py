"""The kernel's files on processor clocks in an ordinary folder, laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path


class CpufreqTree:
    """Groups of processors that share a clock, as files.

    Args:
        root: the folder to lay them out in; stands for ``/sys/devices/system/cpu/cpufreq``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)  # the kernel shows it, empty, where there is no driver

    def add(self, policy: int, lowest_khz: int, highest_khz: int, ceiling_khz: int | None = None) -> Path:
        """Make ``policyN``; return the file of its ceiling, which is `highest_khz` if it is not given."""
        folder = self.root / f"policy{policy}"
        folder.mkdir()
        for name, khz in (
            ("cpuinfo_min_freq", lowest_khz), ("cpuinfo_max_freq", highest_khz),
            ("scaling_min_freq", lowest_khz), ("scaling_max_freq", ceiling_khz or highest_khz),
        ):  # fmt: skip
            (folder / name).write_text(f"{khz}\n")
        (folder / "related_cpus").write_text(f"{policy}\n")
        return folder / "scaling_max_freq"
