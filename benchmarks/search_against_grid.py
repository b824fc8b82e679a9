"""How close does the search come to an exhaustive grid over the same space, and at what share of its cost?

    python benchmarks/search_against_grid.py

Energy only, at batch 1: llama.cpp with five weight formats and OpenVINO with two, each with both thread
counts, every KV-cache precision, with and without speculation. The grid measures every point in full; the
search may drop points early. The two winners then run in turn, so that the host's drift touches both.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, Study
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.finals import Finals
from negawatt.tuning.judge import Judge
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Workload

FORMATS = {
    "llamacpp": ("native", "q8_0", "q4_0-head8", "q4_0", "iq4_nl"),
    "openvino": ("native", "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default="llamacpp,openvino")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    artifact = Artifact.open("smollm2-135m-instruct")
    workload = Workload.open("interactive-chat")
    cores = tuple(sorted({1, len(os.sched_getaffinity(0))}))
    space = Space(tuple(options.engines.split(",")), (1,), cores, 1024, FORMATS)
    baseline = Candidate(Settings(engine="llamacpp", max_context=1024))
    workshop = Workshop(artifact)
    traffic = Traffic(workshop, workload.traffic, 1024)
    folder = Path(tempfile.mkdtemp(prefix="negawatt-grid-"))

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)

    def study(name: str) -> Study:
        run = Run.create("tune", path=folder / name)
        judge = Judge(workshop, workload, baseline, 0.95)
        return Study(run, space, Constraints(), judge, baseline, traffic, [], 0, options.seed)

    search = study("search")
    search.search(lambda: 1.0, say)
    grid = study("grid")
    for candidate in space.grid():
        say(f"grid: {candidate}")
        grid.keep(grid.try_candidate(candidate, say, screen=False), None)

    spent = {s: sum(t.figures.get("cpu_s_spent", 0.0) for t in s.trials) for s in (search, grid)}
    best = {
        s: min((t for t in s.trials if t.feasible), key=lambda t: t.cost or 1e9).candidate
        for s in (search, grid)
    }
    points = len(list(space.grid()))
    print(f"grid: {points} points, {spent[grid]:.0f} CPU-seconds, best {best[grid]}")
    print(
        f"search: {len(search.trials)} trials, {spent[search]:.0f} CPU-seconds "
        f"({spent[search] / spent[grid]:.0%} of the grid's), best {best[search]}"
    )
    if best[search] == best[grid]:
        print("the search found the grid's best point")
        return
    with Run.create("tune", path=folder / "finals") as run:
        finals = Finals(run, workshop, traffic, say)
        _, profile = finals.compare(best[search], best[grid], lambda: 1.0)
    assert profile is not None and profile.ratio is not None
    print(f"the search's choice costs {profile.ratio.text} times the grid's, in turn")


if __name__ == "__main__":
    main()
