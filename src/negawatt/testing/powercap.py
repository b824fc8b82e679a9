"""A powercap tree in an ordinary folder, laid out as the kernel lays it out."""

from __future__ import annotations

import os
from pathlib import Path


class PowercapTree:
    """RAPL zones as files. What is read from them goes through the real file system.

    Args:
        root: the folder to lay them out in; stands for ``/sys/class/powercap``.
        range_uj: where the counters wrap.
    """

    def __init__(self, root: Path, range_uj: int = 262_143_328_850) -> None:
        self.root = root
        self.range_uj = range_uj

    def add(self, zone: str, name: str, energy_uj: int = 0) -> Path:
        """Make a zone such as ``intel-rapl:0`` named ``package-0``; return its folder."""
        folder = self.root / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{self.range_uj}\n")
        self.set(zone, energy_uj)
        return folder

    def limit(
        self, zone: str, power_uw: int, *, most_uw: int = 0, window_us: int = 27_983_872, enabled: bool = True
    ) -> Path:
        """Give a zone limits as a package has them, the long-term one of `power_uw`; return that one's file.

        Args:
            most_uw: what the package is made for; 0 where its firmware does not tell.
        """
        folder = self.root / zone
        (folder / "enabled").write_text(f"{int(enabled)}\n")
        for number, (name, factor, span_us) in enumerate(
            (("long_term", 1.0, window_us), ("short_term", 1.25, 2440))
        ):
            (folder / f"constraint_{number}_name").write_text(f"{name}\n")
            (folder / f"constraint_{number}_power_limit_uw").write_text(f"{round(power_uw * factor)}\n")
            (folder / f"constraint_{number}_max_power_uw").write_text(f"{most_uw}\n")
            (folder / f"constraint_{number}_time_window_us").write_text(f"{span_us}\n")
        return folder / "constraint_0_power_limit_uw"

    def set(self, zone: str, energy_uj: int) -> None:
        """Put a counter to a value."""
        fd = os.open(self.root / zone / "energy_uj", os.O_WRONLY | os.O_CREAT, 0o644)
        try:  # never empty in between: whoever reads meanwhile reads a number, as of the kernel
            os.ftruncate(fd, os.pwrite(fd, b"%d\n" % (energy_uj % self.range_uj), 0))
        finally:
            os.close(fd)

    def get(self, zone: str) -> int:
        return int((self.root / zone / "energy_uj").read_text())

    def spend(self, joules: float) -> None:
        """Let this many joules flow through every zone; counters wrap as the hardware's do."""
        for folder in self.root.iterdir():
            self.set(folder.name, self.get(folder.name) + round(joules * 1e6))

    @classmethod
    def server(cls, root: Path) -> PowercapTree:
        """Two packages, each with cores and memory, and the platform's own zone."""
        tree = cls(root)
        for package in (0, 1):
            tree.add(f"intel-rapl:{package}", f"package-{package}", 1_000_000)
            tree.add(f"intel-rapl:{package}:0", "core", 2_000_000)
            tree.add(f"intel-rapl:{package}:1", "dram", 3_000_000)
        tree.add("intel-rapl:2", "psys", 4_000_000)
        return tree
