"""What `negawatt monitor` costs itself, beside a plain walk over all processes.

    python benchmarks/monitor_overhead.py --seconds 20 [--processes 1000]

CPU seconds of the monitor's own process, all threads, for each second that it runs, at ten samples a
second; the first seconds, in which it starts up, are left out. The walk beside it is what
tools of this kind do: every process's times and memory by psutil, ten times a second.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from negawatt.meter.process import own_cpu_s

START_S = 4.0
MONITOR = [sys.executable, "-c", "from negawatt.cli import main; main()", "monitor", "--interval", "0.1"]
WALK = """
import psutil, time
while True:
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                process.cpu_times(), process.memory_info(), process.name()
        except psutil.Error:
            pass
    time.sleep(0.1)
"""


def share(command: list[str], seconds: float, scrape: int | None = None) -> float:
    """CPU seconds a second of a command's own process, all threads, after it has run for a while."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(START_S)
        begun_s, used_s = time.monotonic(), own_cpu_s(process.pid)
        end_s = begun_s + seconds
        while time.monotonic() < end_s:
            time.sleep(min(5.0, max(0.0, end_s - time.monotonic())))
            if scrape is not None:
                urllib.request.urlopen(f"http://127.0.0.1:{scrape}/metrics", timeout=5).read()
        return (own_cpu_s(process.pid) - used_s) / (time.monotonic() - begun_s)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=0, help="sleeping processes to start beside")
    arguments = parser.parse_args()
    sleepers = [subprocess.Popen(["sleep", "3600"]) for _ in range(arguments.processes)]
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "negawatt monitor, nobody asks": ([*MONITOR, "--prometheus-port", str(port)], None),
            "… scraped by Prometheus every 5 s": ([*MONITOR, "--prometheus-port", str(port)], port),
            "… appending every sample to CSV": ([*MONITOR, "--csv", str(Path(folder) / "a.csv")], None),
            "walk over all processes by psutil": ([sys.executable, "-c", WALK], None),
        }
        try:
            found = {name: share(row[0], arguments.seconds, row[1]) for name, row in rows.items()}
        finally:
            for sleeper in sleepers:
                sleeper.kill()
            for sleeper in sleepers:
                sleeper.wait()
    cores = os.cpu_count() or 1
    count = sum(entry.isdigit() for entry in os.listdir("/proc")) + arguments.processes
    walk = found["walk over all processes by psutil"]
    print(f"{count} processes, {cores} cores, 10 samples a second, {arguments.seconds:g} s each\n")
    print("| | of one core | of the machine | times less than the walk |")
    print("|---|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.2%} | {value / cores:.2%} | {walk / value:.1f} |")


if __name__ == "__main__":
    main()
