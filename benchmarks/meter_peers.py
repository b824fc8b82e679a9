"""What do Zeus, CodeCarbon, perun and this meter report for the same jobs on this machine?

    python benchmarks/meter_peers.py

Three jobs of the same length: one busy core, while another process that is none of the job's keeps a
second one busy; a language model that answers, loading included; and one that mostly sleeps and writes
to disk. Zeus and CodeCarbon watch the very run that ``negawatt measure`` measures; perun runs its scripts
itself, so it gets a run of its own. Joules are as the tool reports them; what it does not report is
shown as nothing, and what it reports as 0 or None as that. Each peer lives in an environment of its
own under ``--environments``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments import environment
from meter_windows import PACKAGES, PEERS, Peer

JOBS = ("one-core", "generating", "waiting")


def ours(job: list[str]) -> dict[str, Any]:
    """The document of ``negawatt measure`` for a job."""
    command = [sys.executable, "-c", "from negawatt.cli import main; main()", "measure", "--json", "--", *job]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def perun(python: Path, job: list[str]) -> dict[str, Any]:
    """Every metric that ``perun monitor`` reports for a job's last run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python.parent / "perun", "monitor", "--format", "json", "--data-out", folder, *job[1:]]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        [report] = Path(folder).glob("*.json")
        metrics = json.loads(report.read_text())["metrics"]
    return {name: metric["mean"] for name, metric in metrics.items()}


def shown(joules: float | None) -> str:
    return "None" if joules is None else f"{joules:.1f}"


def rows(job: str, seconds: float, peers: dict[str, Peer], perun_python: Path) -> Iterator[str]:
    """The table's lines for one job."""
    script = str(PEERS / "meter_job.py")
    command = [sys.executable, script, job, str(seconds), sys.executable, script]
    for peer in peers.values():
        peer.ask("start")
    spent = ours(command)
    said = {name: peer.ask("stop") for name, peer in peers.items()}
    energy, carbon, zeus = spent["energy"], said["codecarbon"], said["zeus"]
    interval = f"{energy['low_j']:.1f}–{energy['high_j']:.1f}"
    others = spent["other_cpu_s"]
    dram, held = spent["components"].get("dram"), spent["footprint"]["resident_bytes"]
    memory = f" and {dram['value_j']:.1f} J of {held / 1e6:.0f} MB" if dram and held else ""
    yield (
        f"| {job} | Negawatt | {energy['value_j']:.1f} ({interval}), {energy['provenance']} | the job's "
        f"{spent['cpu_s']:.1f} CPU-s{memory}; {others:.1f} of others are not charged; idle "
        f"{spent['idle']['value_j']:.1f} of it |"
    )
    parts = ", ".join(f"{part} {carbon[f'{part}_j']:.1f}" for part in ("cpu", "ram", "gpu"))
    mean_w, watched_s = carbon["energy_j"] / carbon["duration_s"], carbon["duration_s"]
    yield f"| {job} | CodeCarbon | {carbon['energy_j']:.1f} | {parts}; {mean_w:.1f} W for {watched_s:.1f} s |"
    found = ", ".join(f"{part} {shown(zeus[f'{part}_j'])}" for part in ("cpu", "dram", "gpu"))
    yield f"| {job} | Zeus | – | {found}; {zeus['duration_s']:.1f} s |"
    metrics = perun(perun_python, command)
    joules = metrics.get("energy")
    rest = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if name != "energy")
    yield f"| {job} | perun | {'–' if joules is None else f'{joules:.1f}'} | {rest} |"


@contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """Another process that keeps a core busy, if wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--environments", type=Path, default=Path(".negawatt/peers"))
    options = parser.parse_args()

    where = options.environments.absolute()
    python = {name: environment(where, name, packages) for name, packages in PACKAGES.items()}
    peers = {name: Peer(python[name], f"meter_{name}.py") for name in ("codecarbon", "zeus")}
    print(f"| job, {options.seconds:g} s | meter | J | of it, and beside it |\n|---|---|---|---|")
    for job in options.jobs:
        with neighbour(job == "one-core"):
            for row in rows(job, options.seconds, peers, python["perun"]):
                print(row, flush=True)
    for peer in peers.values():
        peer.close()


if __name__ == "__main__":
    main()
