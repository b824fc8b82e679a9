"""Negawatt's winner against the peers' defaults: CPU seconds per generated token, in interleaved rounds.

    python benchmarks/against_peers.py RUN                 batch 1, interactive chat
    python benchmarks/against_peers.py RUN --batch 8,32    peers at each of these batches, stock at batch 1

RUN is a finished ``negawatt tune`` run; its winner is what is compared. Each peer lives in an
environment of its own under ``--environments``. All runtimes are loaded at once and take turns, the
first of each round rotating, so that the host's drift touches all alike. Figures are CPU seconds of
the runtime's process, all threads, prefill included, for each generated token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import environment
from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.profiling import reference_load
from negawatt.run import Run
from negawatt.workload import Workload, ratio_interval

PEERS = Path(__file__).parent / "peers"
NEW_TOKENS = 96
PACKAGES = {
    "transformers": ["torch==2.13.0", "transformers==5.23.0"],
    "openvino-genai": ["openvino-genai==2026.4.1.0"],
    "xllamacpp": ["xllamacpp==2026.10.11549"],
}


class Peer:
    """A peer's process, asked by lines of JSON."""

    def __init__(self, name: str, python: Path, script: str, *arguments: str, batch: int) -> None:
        self.name, self.batch = name, batch
        command = [str(python), str(PEERS / script), *arguments]
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=quiet,
        )
        self._read()

    def run(self, prompts: list[str], new_tokens: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """A way of running the model through Negawatt's engines, with the same interface."""

    def __init__(self, name: str, artifact: Artifact, settings: Settings) -> None:
        self.name, self.batch = name, settings.batch
        self.engine = Engine(artifact, settings).open()

    def run(self, prompts: list[str], new_tokens: int) -> dict[str, Any]:
        tokenizer = self.engine.artifact.tokenizer
        generation = self.engine.generate([Request(tokenizer.encode(p), new_tokens) for p in prompts])
        tokens = sum(len(c.tokens) for c in generation.completions)
        usage = generation.usage
        return {
            "cpu_s": usage.cpu_s,
            "wall_s": usage.wall_s,
            "tokens": tokens,
            "peak_rss_bytes": usage.peak_rss_bytes,
        }

    def close(self) -> None:
        self.engine.close()


def chat_prompts(artifact: Artifact) -> list[str]:
    """The interactive chat as the text that every runtime is given, template applied."""
    tokenizer = artifact.tokenizer
    items = Workload.open("interactive-chat").traffic
    as_chat = [
        [{"role": m.role, "content": m.content} for m in i.prompt]
        for i in items
        if not isinstance(i.prompt, str)
    ]
    return [tokenizer.decode(tokenizer.chat(messages)) for messages in as_chat]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", default="1", help="of the peers; several are separated by commas")
    parser.add_argument("--our-batch", type=int, help="instead of the winner's own")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--environments", type=Path, default=Path(".negawatt/peers"))
    parser.add_argument("--json", type=Path, help="write all samples here, after every round")
    options = parser.parse_args()

    run = Run.open(options.run, kind="tune")
    assert run.result is not None, "the run is not finished"
    artifact = Artifact.open(run.manifest["artifact"]["name"])
    best = run.result["best"]
    own = Artifact.open(options.run / "artifact") if best.get("passes") else artifact
    winner = Settings.from_json(best["settings"])
    winner = winner.replace(batch=options.our_batch or winner.batch)
    gguf, checkpoint = str(artifact.gguf()), str(artifact.checkpoint())
    python = {
        name: environment(options.environments.absolute(), name, packages)
        for name, packages in PACKAGES.items()
    }
    stock = Peer("transformers fp32", python["transformers"], "stock_transformers.py", checkpoint, batch=1)
    runtimes: list[Any] = [stock]
    for b in map(int, options.batch.split(",")):
        at = f", batch {b}" if b > 1 else ""
        genai, wheel = python["openvino-genai"], python["xllamacpp"]
        plain = Settings(engine="llamacpp", max_context=1024, batch=b)
        runtimes += [
            Peer(f"OpenVINO GenAI{at}", genai, "openvino_genai_default.py", gguf, batch=b),
            Peer(f"llama.cpp wheel (xllamacpp){at}", wheel, "xllamacpp_default.py", gguf, str(b), batch=b),
            Ours(f"llama.cpp, best build, defaults{at}", artifact, plain),
        ]
    label = " + ".join(each.partition(":")[0] for each in [*best.get("passes", ()), str(winner)])
    runtimes.append(Ours(f"Negawatt: {label}", own, winner))
    prompts = chat_prompts(artifact)
    samples: dict[str, list[float]] = {r.name: [] for r in runtimes}
    references = []
    for number in range(-1, options.rounds):  # round -1 warms up
        for k in range(len(runtimes)):
            runtime = runtimes[(max(number, 0) + k) % len(runtimes)]
            # Each round's prompts begin in a way of their own: some peers keep prefixes from round to round.
            group = [
                f"{number}.{i}\n{prompts[(max(number, 0) * 7 + i) % len(prompts)]}"
                for i in range(runtime.batch)
            ]
            answer = runtime.run(group, NEW_TOKENS if number >= 0 else 4)
            if number >= 0:
                samples[runtime.name].append(answer["cpu_s"] / answer["tokens"])
        references.append(reference_load())
        if options.json:
            found = {"cpu_s_per_token": samples, "reference_s": references}
            options.json.write_text(json.dumps(found, indent=1))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for runtime in runtimes:
        runtime.close()
    report(samples, references, [r.name for r in runtimes])


def report(samples: dict[str, list[float]], references: list[float], names: list[str]) -> None:
    """A table with each runtime's figure, its spread, and how many times more it spends than ours."""
    ours = names[-1]
    print(f"| runtime | CPU-ms/token, median | spread seen | times ours (95 %) |\n|{'---|' * 4}")
    for name in names:
        found = [1000 * x for x in samples[name]]
        ratio = ratio_interval(samples[name], samples[ours], robust=len(found) >= 6)
        times = "1" if name == ours else f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f}–{max(found):.2f} | {times} |")
    print(f"\nreference load: {1000 * min(references):.1f} to {1000 * max(references):.1f} CPU-ms")


if __name__ == "__main__":
    main()
