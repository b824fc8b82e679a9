"""A folder laid out like ``/proc``, whose processes the test starts, runs and ends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class ProcTree:
    """Writes the files that are read of ``/proc``; its clock is exact, its ``stat`` in ticks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stats: dict[int, dict[str, object]] = {}
        self._newest = 0
        root.mkdir(parents=True, exist_ok=True)
        self._tell()

    def start(
        self, pid: int, name: str = "job", cgroup: str = "0::/\n", parent: int = 1, start: int = 100
    ) -> None:
        self._stats[pid] = {"name": name, "parent": parent, "start": start, "cpu_s": 0.0, "waited_s": 0.0}
        self._newest = max(self._newest + 1, pid)
        folder = self.root / str(pid)
        folder.mkdir()
        (folder / "cgroup").write_text(cgroup)
        self._write(pid)
        self._tell()

    def run(self, pid: int, seconds: float, waited_s: float = 0.0) -> None:
        stat = self._stats[pid]
        stat["cpu_s"] += seconds  # type: ignore[operator]
        stat["waited_s"] += waited_s  # type: ignore[operator]
        self._write(pid)
        if waited_s:
            self.fork()

    def fork(self) -> None:
        """Some process came and went unseen."""
        self._newest += 1
        self._tell()

    def end(self, pid: int) -> None:
        del self._stats[pid]
        shutil.rmtree(self.root / str(pid))

    def cpu_s(self, pid: int) -> float:
        if pid not in self._stats:
            raise ProcessLookupError(pid)
        return float(self._stats[pid]["cpu_s"])  # type: ignore[arg-type]

    def _write(self, pid: int) -> None:
        stat = self._stats[pid]
        user, waited = (round(float(stat[k]) * TICKS) for k in ("cpu_s", "waited_s"))  # type: ignore[arg-type]
        numbers = [stat["parent"], 1, 1, 0, -1, 0, 0, 0, 0, 0, user, 0, waited, 0, 20, 0, 1, 0]
        line = f"{pid} ({stat['name']}) S {' '.join(map(str, numbers))} {stat['start']} 1000000 256 0\n"
        (self.root / str(pid) / "stat").write_text(line)

    def _tell(self) -> None:
        (self.root / "loadavg").write_text(f"0.00 0.00 0.00 1/{len(self._stats)} {self._newest}\n")
