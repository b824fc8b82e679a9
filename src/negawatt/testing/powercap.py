"""A powercap tree in an ordinary folder, laid out as the kernel lays it out."""

from __future__ import annotations

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

    def set(self, zone: str, energy_uj: int) -> None:
        """Put a counter to a value."""
        (self.root / zone / "energy_uj").write_text(f"{energy_uj % self.range_uj}\n")

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
