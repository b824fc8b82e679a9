"""What does measuring cost? The meter's CPU share at 10 Hz, its windows and its first use, peers beside.

    python benchmarks/meter_overhead.py

The CPU share is that of a process that does nothing but read everything ten times a second: the
sources of this machine, and files laid out as two RAPL packages, AMD's energy counters, a graphics
card, a Jetson's rails and a battery, which another process keeps moving, all read at 10 Hz or more.
Each peer runs in an environment of its own under ``--environments``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from environments import environment
from meter_windows import PACKAGES, PEERS, Peer, detached
from negawatt.meter import Integrated, Meter, Station
from negawatt.meter.battery import BatterySource
from negawatt.meter.hwmon import HwmonEnergySensor, HwmonPowerSource, JetsonPowerSource
from negawatt.meter.process import OwnTree
from negawatt.meter.rapl import RaplSensor
from negawatt.meter.station import this_station
from negawatt.testing.powercap import PowercapTree

FILES: dict[str, object] = {
    "hwmon/hwmon0/name": "amd_energy",
    "hwmon/hwmon1/name": "amdgpu",
    "hwmon/hwmon1/power1_average": 90_000_000,
    "hwmon/hwmon2/name": "ina3221",
    "power_supply/BAT0/type": "Battery",
    "power_supply/BAT0/status": "Discharging",
    "power_supply/BAT0/power_now": 15_000_000,
}
for _socket in (0, 1):
    FILES[f"hwmon/hwmon0/energy{_socket + 1}_label"] = f"Esocket{_socket}"
    FILES[f"hwmon/hwmon0/energy{_socket + 1}_input"] = 5_000_000
for _n, _rail in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
    FILES[f"hwmon/hwmon2/in{_n}_label"] = _rail
    FILES[f"hwmon/hwmon2/in{_n}_input"] = 5000
    FILES[f"hwmon/hwmon2/curr{_n}_input"] = 1000

MOVER = """
import pathlib, sys, time
files = [p for p in pathlib.Path(sys.argv[1]).rglob("*energy*") if p.name.endswith(("_uj", "_input"))]
files = [p for p in files if "range" not in p.name]
joules = 5
while True:
    time.sleep(0.02)
    joules += 1
    for file in files:
        with file.open("r+") as opened:  # in place: a file cut short for a moment would be a torn read
            opened.write(f"{joules * 1_000_000:015}")
"""


@contextmanager
def laid_out_machine() -> Iterator[Station]:
    """A station on files that look like every sensor Linux can show; another process moves the counters."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        PowercapTree.server(root / "powercap")
        for name, content in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{content}\n")
        with detached(sys.executable, "-c", MOVER, folder):
            time.sleep(0.5)
            yield Station(
                [
                    RaplSensor(root / "powercap"),
                    HwmonEnergySensor(root / "hwmon"),
                    Integrated(HwmonPowerSource(root / "hwmon")),
                    Integrated(JetsonPowerSource(root / "hwmon")),
                    Integrated(BatterySource(root / "power_supply")),
                ]
            )


def share_at_10_hz(act: Callable[[], object], seconds: float) -> float:
    """CPU seconds a second of this process while it does something ten times a second, children left out."""
    begun_s, cpu_s = time.monotonic(), time.process_time()
    number = 0
    while time.monotonic() < begun_s + seconds:
        act()
        number += 1
        time.sleep(max(0.0, begun_s + number / 10 - time.monotonic()))
    return (time.process_time() - cpu_s) / (time.monotonic() - begun_s)


def reading(station: Station) -> Callable[[], object]:
    """Read every source and this process tree's CPU time, as both ends of a window do."""
    tree = OwnTree()
    return lambda: (station.snapshot(), tree.cpu_s())


def window(station: Station) -> Callable[[], object]:
    """A window, and its joules asked for."""

    def act() -> None:
        with Meter(station) as meter:
            pass
        _ = meter.measurement

    return act


def median_window_s(station: Station, count: int, *, figures: bool = False) -> float:
    """Seconds from entering to having left an empty window; with `figures`, to having its joules."""
    meter, took = Meter(station), []
    for _ in range(count):
        begun = time.perf_counter()
        with meter:
            pass
        if figures:
            _ = meter.measurement
        took.append(time.perf_counter() - begun)
    return sorted(took)[count // 2]


FIRST_USE = """
import time
begun = time.perf_counter()
from negawatt import Meter
with Meter() as meter: pass
print(time.perf_counter() - begun)
"""


def first_use_s(times: int) -> float:
    """Seconds from before the import to the end of the first window, in fresh processes; the median."""
    run = [sys.executable, "-c", FIRST_USE]
    took = [float(subprocess.run(run, capture_output=True, check=True).stdout) for _ in range(times)]
    return sorted(took)[times // 2]


def perun_window_s(python: Path, count: int) -> float:
    """Median seconds of one of perun's regions, under ``perun monitor``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            python.parent / "perun",
            "monitor",
            "--data-out",
            folder,
            PEERS / "meter_perun.py",
            str(count),
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("window_s")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of watching for each CPU share")
    parser.add_argument("--environments", type=Path, default=Path(".negawatt/peers"))
    options = parser.parse_args()

    here = this_station()
    rows: list[tuple[str, float, str]] = [
        ("window, this machine's sensors", median_window_s(here, 2000), ""),
        ("the same, and its joules asked for", median_window_s(here, 2000, figures=True), ""),
    ]
    shares = [
        ("the loop alone", share_at_10_hz(lambda: None, options.seconds)),
        ("this machine's sources read", share_at_10_hz(reading(here), options.seconds)),
        ("a window with its joules, this machine's sources", share_at_10_hz(window(here), options.seconds)),
    ]
    with laid_out_machine() as full:
        seen = [s.name for s in full.statuses if s.status == "ok"]
        shares.append((f"files of {', '.join(seen)} read", share_at_10_hz(reading(full), options.seconds)))
        rows.append(("window, the same files", median_window_s(full, 2000), ""))
        full.close()
    peers = {name: peer(options.environments, name) for name in ("codecarbon", "zeus")}
    task_s = peers["codecarbon"].ask("time 300")["window_s"]
    rows += [
        ("window, CodeCarbon task", task_s, ""),
        (
            "window, Zeus (finds nothing to read, tells the time)",
            peers["zeus"].ask("time 2000")["window_s"],
            "",
        ),
    ]
    python = environment(options.environments.absolute(), "perun", PACKAGES["perun"])
    rows.append(("window, perun region (a time stamp)", perun_window_s(python, 2000), ""))
    rows = [(name, seconds, f"{task_s / seconds:.1f}") for name, seconds, _ in rows]
    report(shares, rows, first_uses(options.environments, peers))
    for each in peers.values():
        each.close()


def peer(environments: Path, name: str) -> Peer:
    return Peer(environment(environments.absolute(), name, PACKAGES[name]), f"meter_{name}.py")


def first_uses(environments: Path, running: dict[str, Peer]) -> list[tuple[str, float]]:
    """Import to first window closed; the peers' second start, when their files are in memory."""
    ours = [("Negawatt", first_use_s(7))]
    for name in running:
        took = []
        for _ in range(3):
            again = peer(environments, name)
            took.append(again.ready["first_use_s"])
            again.close()
        ours.append((name, sorted(took)[1]))
    return ours


def report(
    shares: Sequence[tuple[str, float]],
    windows: Sequence[tuple[str, float, str]],
    first: Sequence[tuple[str, float]],
) -> None:
    print("| at 10 Hz | share of one core |\n|---|---|")
    for name, share in shares:
        print(f"| {name} | {100 * share:.3f} % |")
    print("\n| opening and closing a window | µs, median | CodeCarbon's costs times as much |\n|---|---|---|")
    for name, seconds, times in windows:
        print(f"| {name} | {1e6 * seconds:.1f} | {times} |")
    print("\n| first use, import included | s, median | times ours |\n|---|---|---|")
    for name, seconds in first:
        print(f"| {name} | {seconds:.3f} | {seconds / first[0][1]:.1f} |")


if __name__ == "__main__":
    main()
