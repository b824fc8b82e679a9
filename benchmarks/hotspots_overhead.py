"""What looking for hot-spots costs: CPU time of the same job looked at and not, in turns.

    python benchmarks/hotspots_overhead.py [--rounds 5]

Jobs: nothing at all, which shows the cost of the start; Python code that calls small functions all the
time (the worst case for a sampler that hangs on calls); sorting; and matrix products (the best). Beside
ours: pyinstrument's own command and cProfile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

JOBS = {
    "nothing": "",
    "calls": "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nfor _ in range(60): f(25)\n",
    "sorting": "import random\nfor _ in range(30): sorted([random.random() for _ in range(200_000)])\n",
    "matrices": "import numpy as np\na = np.random.rand(500, 500)\nfor _ in range(400): a = a @ a / 500\n",
}
NEGAWATT = "from negawatt.cli import main; main()"
WAYS = {
    "plain": [],
    "negawatt hotspots": [sys.executable, "-c", NEGAWATT, "hotspots", "--"],
    "pyinstrument": ["-m", "pyinstrument", "-o", os.devnull],
    "cProfile": ["-m", "cProfile", "-o", os.devnull],
}


def cpu_s(way: str, job: Path) -> float:
    """CPU seconds of the job's whole process, its profiler's start and end included.

    Of ``negawatt hotspots`` the job's process alone, as it reports it: that is what a user's job pays.
    """
    if way == "negawatt hotspots":
        command = [*WAYS[way][:-1], "--json", "--", sys.executable, str(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["cpu_s"])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *WAYS[way], str(job)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    print("| job | way | CPU-s, median | times plain, median of pairs (lowest–highest) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, code in JOBS.items():
            job = Path(folder) / f"{name}.py"
            job.write_text(code, "utf-8")
            seen: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    seen[way].append(cpu_s(way, job))
            for way, values in seen.items():
                ratios = [v / p for v, p in zip(values, seen["plain"], strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                print(f"| {name} | {way} | {statistics.median(values):.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
