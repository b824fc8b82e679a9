"""Negawatt's server against llama.cpp's and OpenVINO GenAI's, on the same weights, by concurrent streams.

    python benchmarks/serve_streams.py --streams 1,4,16 --rounds 3

All are HTTP servers in processes of their own, asked for streamed completions by the same client; they take
turns, the first of each round rotating. CPU seconds are those of all the server's processes, with what
speaks HTTP (``gateway``, where it can be told apart: ours is a process of its own, OpenVINO's front a
thread); joules follow from them by the CPU-time model, so their ratio is the same. Goodput counts the tokens
of answers that began within ``--ttft`` seconds and went on at ``--tpot`` seconds a token or faster. Ours runs
on each of ``--engines``; the ratio is to the first of them.

The others live in environments below ``--environments``. OpenVINO GenAI has no HTTP server of its own;
what is in front of it here, ``peers/openvino_server.py``, does much less than a server has to. OpenVINO
GenAI rounds the offsets of the file's blocks to 4 bits, which takes this model's perplexity from 25.0 to
32.3 (see `negawatt.engine.openvino_ir`); ours keeps them, which is slower, so ``int8`` is what ours runs
there.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import environment
from http_load import Outcome, Served, asks, load
from negawatt.artifact import Artifact
from negawatt.meter import energy_of_cpu_time

INPUTS, OUTPUTS = (12, 40, 90, 24), (48, 80, 32, 64)
NEGAWATT = "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"
PEERS = Path(__file__).parent / "peers"
PACKAGES = {"llama.cpp": "xllamacpp==2026.10.11549", "openvino": "openvino-genai==2026.4.1.0"}
SCRIPTS = {"llama.cpp": "xllamacpp_server.py", "openvino": "openvino_server.py"}


@dataclass(frozen=True)
class Line:
    """What a server did in a round.

    Attributes:
        tokens: that were written.
        good: those of them that came in time.
        gateway_s, cpu_s: CPU seconds of what speaks HTTP, and of all of it.
        firsts_s: seconds to the first token of each answer.
    """

    tokens: int
    good: int
    wall_s: float
    gateway_s: float
    cpu_s: float
    firsts_s: list[float]

    @property
    def cost_ms(self) -> float:
        return 1000 * self.cpu_s / self.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engines", default="llamacpp,openvino:int8", help="ours: ENGINE or ENGINE:FORMAT")
    parser.add_argument("--peers", default="llama.cpp,openvino")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="of each stream in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ttft", type=float, default=3.0)
    parser.add_argument("--tpot", type=float, default=0.3)
    parser.add_argument("--environments", type=Path, default=Path("environments"))
    options = parser.parse_args()
    pythons = {
        name: environment(options.environments, PACKAGES[name].partition("==")[0], [PACKAGES[name]])
        for name in filter(None, options.peers.split(","))
    }
    artifact = Artifact.open(options.model)
    print(f"{'streams':>7} {'server':<15}{'tok/s':>8}{'CPU-ms/tok':>12}{'gateway':>9}{'J/tok':>8}"
          f"{'good/J':>8}{'TTFT p50':>10}{'p99 ms':>8}  CPU-ms to the first's (rounds)")  # fmt: skip
    for streams in map(int, options.streams.split(",")):
        common = [str(streams), str(options.threads)]
        servers: list[Served] = []
        try:
            for engine in options.engines.split(","):
                name, _, weight_format = engine.partition(":")
                own = [sys.executable, "-c", NEGAWATT, "serve", artifact.path, "--port", "0", "--json"]
                own += ["--engine", name, "--batch", common[0], "--threads", common[1]]
                own += ["--weights", weight_format or "native"]
                servers.append(Served(f"ours, {engine}", [*own, "--max-context", "1024"], "process"))
            for name, python in pythons.items():
                command = [python, PEERS / SCRIPTS[name], artifact.gguf(), *common]
                servers.append(Served(name, command, "thread" if name == "openvino" else "inside"))
            found = in_turns(servers, artifact.name, streams, options)
        finally:
            for server in servers:
                server.close()
        for name, lines in found.items():
            print(f"{streams:>7} {told(name, lines, found[servers[0].name])}", flush=True)


def in_turns(
    servers: Sequence[Served], model: str, streams: int, options: argparse.Namespace
) -> dict[str, list[Line]]:
    """What each server did in every round."""
    found: dict[str, list[Line]] = {server.name: [] for server in servers}
    for number in range(-1, options.rounds):  # the first one warms up
        turn = number % len(servers)
        for server in (*servers[turn:], *servers[:turn]):
            each, at_once = (options.requests, streams) if number >= 0 else (1, 1)
            work = [asks(each, 1000 * number + n, INPUTS, OUTPUTS) for n in range(at_once)]
            before = server.cpu_s()
            outcomes, wall_s = asyncio.run(load(server.address, model, work))
            gateway_s, cpu_s = (b - a for a, b in zip(before, server.cpu_s(), strict=True))
            tokens = sum(o.tokens for o in outcomes)
            good = sum(o.tokens for o in outcomes if in_time(o, options.ttft, options.tpot))
            if number >= 0:
                firsts = [o.first_s for o in outcomes]
                found[server.name].append(Line(tokens, good, wall_s, gateway_s, cpu_s, firsts))
    return found


def in_time(outcome: Outcome, ttft_s: float, tpot_s: float) -> bool:
    after_s = outcome.whole_s - outcome.first_s
    return outcome.first_s <= ttft_s and after_s <= tpot_s * max(1, outcome.tokens - 1)


def told(name: str, lines: Sequence[Line], first: Sequence[Line]) -> str:
    """A line of the table: medians over rounds."""
    cost = statistics.median(line.cost_ms for line in lines)
    joules = energy_of_cpu_time(cost / 1000).value_j or 0.0
    whole_j = energy_of_cpu_time(sum(line.cpu_s for line in lines)).value_j or 0.0
    firsts = sorted(1000 * first for line in lines for first in line.firsts_s)
    last = firsts[min(len(firsts) - 1, round(0.99 * len(firsts)))]
    ratios = [line.cost_ms / base.cost_ms for line, base in zip(lines, first, strict=True)]
    said = (
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})" if lines is not first else ""
    )
    gateway = statistics.median(1000 * line.gateway_s / line.tokens for line in lines)
    return (
        f"{name:<15}{statistics.median(line.tokens / line.wall_s for line in lines):>8.1f}{cost:>12.2f}"
        f"{gateway:>9.2f}{joules:>8.4f}{sum(line.good for line in lines) / whole_j:>8.1f}"
        f"{statistics.median(firsts):>10.0f}{last:>8.0f}  {said}"
    )


if __name__ == "__main__":
    main()
