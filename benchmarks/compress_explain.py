"""Does a pass save what `negawatt compress --explain` foretells?

    python benchmarks/compress_explain.py [--engine llamacpp:native:1] [--batches 1,16]

Foretold is the ratio of a token's cost after a pass to that before. Then the pass is really made, on little
text, since its values do not matter for the cost, and both models run in turn at each batch: CPU seconds per
generated token, prompts of 128 tokens and answers of 96 as in what is foretold.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.cli.settings import parse_settings
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.dissection import ANSWER, PROMPT
from negawatt.compress.explain import explain
from negawatt.engine import Engine, Request
from negawatt.workload import ratio_interval

PASSES = (
    "rtn:bits=8,embeddings=8",
    "rtn:bits=4,group=32,embeddings=8",
    "depth:ratio=0.3,order=contiguous",
    "width:ffn=0.3",
)
ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="llamacpp:native:1", help="ENGINE[:WEIGHTS[:THREADS]]")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--work", type=Path, help="keep what the passes made here, and use it again")
    options = parser.parse_args()

    whole = Artifact.open("smollm2-135m-instruct")
    folder = options.work or Path(tempfile.mkdtemp(prefix="negawatt-explain-"))
    made = {}
    for text in PASSES:
        target = folder / text.replace(":", "-").replace("=", "-").replace(",", "-")
        if not target.exists():
            recipe = Recipe(whole.name, (parse(text),), windows=4, heldout=2, length=128)
            compress(recipe, target, keep_worse=True)
        made[text] = Artifact.open(str(target))
    print("| batch | bound | pass | foretold | measured (95 %) |\n|---|---|---|---|---|")
    for batch in map(int, options.batches.split(",")):
        settings = parse_settings(options.engine, 1024).replace(batch=batch, max_context=PROMPT + ANSWER + 8)
        told = explain(whole, settings, [parse(text) for text in made])
        ratios = {row["pass"]: row["ratio"] for row in told["passes"]}
        for text, artifact in made.items():
            ratio = ratios[str(parse(text))]
            costs: dict[str, list[float]] = {"before": [], "after": []}
            with Engine(whole, settings) as before, Engine(artifact, settings) as after:
                for number in range(-1, ROUNDS):  # round -1 warms up
                    turns = [("before", before), ("after", after)]
                    for name, engine in turns if number % 2 else turns[::-1]:
                        dice = random.Random(number)
                        tokens = [[dice.randrange(1000) for _ in range(PROMPT)] for _ in range(batch)]
                        answer = engine.generate([Request(t, ANSWER if number >= 0 else 4) for t in tokens])
                        if number >= 0:
                            costs[name].append(answer.usage.cpu_s / (batch * ANSWER))
            found = ratio_interval(costs["after"], costs["before"], robust=False)
            measured = f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})"
            print(f"| {batch} | {told['bound']} | {text} | {ratio:.2f} | {measured} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
