"""What cutting a model's structure saves, and what it costs in quality.

    python benchmarks/compress_structure.py --work FOLDER [--pass PASS …] [--only quality|cost]

Every pass is applied to the same model, calibrated on the chat traffic and its PIQA questions without
their answers, and the result stored as llama.cpp's q8_0. Printed beside the model itself in the same
format: perplexity of held-out windows of that text, PIQA accuracy, for vocabulary on how many of the
workload's prompts the greedy answer is the same to the letter, and CPU seconds a generated token at
batch 1 on one thread. The last come from requests that both take in turn, so that the host's drift
touches both alike.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings
from negawatt.profiling.scores import Scores
from negawatt.profiling.window import groups_for, interleave, requests_of, warm_up
from negawatt.workload import Workload, ratio_interval

PASSES = ("vocabulary", "depth:ratio=0.1", "width:ffn=0.2")
MODEL = "smollm2-135m-instruct"


def say(text: str) -> None:
    print(text, file=sys.stderr)


def cut(technique: str, folder: Path) -> Artifact:
    """The result of a pass, made on first use."""
    output = folder / technique.replace(":", "-").replace("=", "-").replace(",", "-")
    if not output.exists():
        say(f"{technique} …")
        recipe = Recipe(
            MODEL, (parse(technique),), "chat-piqa", windows=32, heldout=16, length=256, threads=1
        )
        compress(recipe, output)
    return Artifact.open(output)


def accuracy(artifact: Artifact, settings: Settings, items: int) -> str:
    piqa = Workload.open("piqa").subset(items)
    with Scores(artifact, piqa, settings) as scores:
        found = scores.quality(settings, piqa.quality, say).interval
    return f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"


def same_answers(before: Artifact, after: Artifact, settings: Settings, n: int) -> str:
    """On how many prompts the two write the same text."""
    traffic = Workload.open("chat-piqa").traffic[:n]
    texts = []
    for artifact in (before, after):
        requests = requests_of(artifact.tokenizer, traffic, settings.max_context)
        with Engine(artifact, settings) as engine:
            completions = [engine.generate([r]).completions[0] for r in requests]
            texts.append([artifact.tokenizer.decode(c.tokens, skip_special=False) for c in completions])
    same = sum(a == b for a, b in zip(*texts, strict=True))
    return f"{same} of {len(traffic)}"


def cost(before: Artifact, after: Artifact, settings: Settings, rounds: int) -> tuple[float, float, Any]:
    """CPU seconds a token of both, and the ratio after/before with its interval."""
    traffic = Workload.open("interactive-chat").traffic
    with Engine(before, settings) as first, Engine(after, settings) as second:
        engines = [first, second]
        groups = []
        for engine in engines:
            requests = requests_of(engine.artifact.tokenizer, traffic, settings.max_context)
            warm_up(engine, requests[0])
            groups.append(groups_for(requests, 1, rounds, 1))
        windows = interleave(engines, [[g[i] for g in groups] for i in range(rounds)])
    costs = [[w.cpu_s_per_token for w in each] for each in windows]
    means = [sum(c) / len(c) for c in costs]
    return means[0], means[1], ratio_interval(costs[1], costs[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the results of the passes")
    parser.add_argument("--pass", dest="passes", action="append", help="default: " + ", ".join(PASSES))
    parser.add_argument("--only", choices=("quality", "cost"))
    parser.add_argument("--format", default="q8_0")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--answers", type=int, default=61)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    settings = Settings(engine="llamacpp", weight_format=options.format, threads=1, max_context=1024)
    whole = Artifact.open(MODEL)
    print(f"{options.format}, one thread, batch 1")
    if options.only != "cost":
        print(f"as it is: PIQA {accuracy(whole, settings, options.items)}")
    for technique in options.passes or PASSES:
        made = cut(technique, options.work)
        step = made.lineage[-1]
        print(f"\n{technique}: {step['outcome']}", flush=True)
        print(f"  weights {whole.shape.n_params / 1e6:.1f} → {made.shape.n_params / 1e6:.1f} million")
        if options.only != "cost":
            quality = step["quality"]
            print(f"  {quality['metric']} {quality['before']:.2f} → {quality['after']:.2f}")
            print(f"  PIQA {accuracy(made, settings, options.items)}")
            if technique.startswith("vocabulary"):
                print(f"  same answers: {same_answers(whole, made, settings, options.answers)}")
        if options.only != "quality":
            before, after, ratio = cost(whole, made, settings, options.rounds)
            print(f"  CPU-ms a token {1000 * before:.2f} → {1000 * after:.2f}, {ratio.text}")
            spent = step["cpu_s"]
            print(f"  the pass took {spent:.0f} CPU-seconds", end="")
            print(f", paid back after {spent / (before - after):,.0f} tokens" if after < before else "")


if __name__ == "__main__":
    main()
