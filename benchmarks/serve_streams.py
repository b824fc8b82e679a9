"""Negawatt's server against llama.cpp's own, on the same weights: throughput and cost by concurrent streams.

    python benchmarks/serve_streams.py --streams 1,4,16 --rounds 3

Both are HTTP servers in processes of their own, asked for streamed completions by the same client; they
take turns, the first of each round alternating. CPU seconds are those of all the server's processes, the
gateway included; joules follow from them by the CPU-time model, so their ratio is the same. llama.cpp's
server lives in an environment below ``--environments``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

from environments import environment
from http_load import Served, asks, load
from negawatt.artifact import Artifact
from negawatt.meter import energy_of_cpu_time

INPUTS, OUTPUTS = (12, 40, 90, 24), (48, 80, 32, 64)
NEGAWATT = "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="of each stream in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=Path("environments"))
    options = parser.parse_args()
    python = environment(options.environments, "xllamacpp", ["xllamacpp==2026.10.11549"])
    artifact = Artifact.open(options.model)
    peers = Path(__file__).parent / "peers"
    print(f"{'streams':>7} {'server':<10}{'tok/s':>8}{'CPU-ms/tok':>12}{'gateway':>9}{'J/tok':>8}"
          f"{'TTFT p50':>10}{'p99 ms':>8}  ratio of CPU-ms (rounds)")  # fmt: skip
    for streams in map(int, options.streams.split(",")):
        common = [str(streams), str(options.threads)]
        ours = Served(
            "negawatt",
            [
                *(sys.executable, "-c", NEGAWATT, "serve", artifact.path, "--port", "0", "--json"),
                *("--batch", common[0], "--threads", common[1], "--max-context", "1024"),
            ],
        )
        theirs = Served("llama.cpp", [python, peers / "xllamacpp_server.py", artifact.gguf(), *common])
        try:
            compare(ours, theirs, artifact.name, streams, options.rounds, options.requests)
        finally:
            ours.close()
            theirs.close()


def compare(ours: Served, theirs: Served, model: str, streams: int, rounds: int, requests: int) -> None:
    """Rounds in turn, and a line for each server."""
    found: dict[str, list[tuple[float, float, float, list[float]]]] = {ours.name: [], theirs.name: []}
    for number in range(-1, rounds):  # the first one warms up
        order = (ours, theirs) if number % 2 else (theirs, ours)
        for server in order:
            each, at_once = (requests, streams) if number >= 0 else (1, 1)
            work = [asks(each, 1000 * number + n, INPUTS, OUTPUTS) for n in range(at_once)]
            before = server.cpu_s()
            outcomes, wall_s = asyncio.run(load(server.address, model, work))
            own, below = (b - a for a, b in zip(before, server.cpu_s(), strict=True))
            tokens = sum(o.tokens for o in outcomes)
            if number >= 0:
                firsts = [1000 * o.first_s for o in outcomes]
                gateway = own if below else 0.0
                found[server.name].append(
                    (tokens / wall_s, 1000 * (own + below) / tokens, 1000 * gateway / tokens, firsts)
                )
    ratios = [a[1] / b[1] for a, b in zip(found[ours.name], found[theirs.name], strict=True)]
    for name, lines in found.items():
        rate, cost, gateway = (statistics.median(line[i] for line in lines) for i in range(3))
        firsts = sorted(first for line in lines for first in line[3])
        last = firsts[min(len(firsts) - 1, round(0.99 * len(firsts)))]
        said = ""
        if name == ours.name:
            said = f"  {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
        joules = energy_of_cpu_time(cost / 1000).value_j or 0.0
        print(f"{streams:>7} {name:<10}{rate:>8.1f}{cost:>12.2f}{gateway:>9.2f}{joules:>8.4f}"
              f"{statistics.median(firsts):>10.0f}{last:>8.0f}{said}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
