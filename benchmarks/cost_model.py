"""How well does the cost model, fitted on some requests, predict requests of other lengths?

    python benchmarks/cost_model.py

Each way of running the model answers requests of a few lengths, on which its model is fitted, and then, in
the same sitting, requests of lengths that the fit never saw, longer ones among them. Both sets are gone
through several times in turn, and predicted is the median of a request's cost. Batches are of equal requests.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict

from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.decode import Step
from negawatt.profiling import CostModel

FITTED = ((24, 16), (64, 48), (160, 32), (256, 64))
HELD_BACK = ((40, 96), (100, 24), (200, 80), (320, 48), (400, 128), (32, 128))
ROUNDS = 3
WAYS = (
    Settings(engine="llamacpp", threads=1, max_context=1024),
    Settings(engine="llamacpp", weight_format="q8_0", threads=1, batch=8, max_context=1024),
    Settings(engine="openvino", weight_format="int8", threads=1, max_context=1024),
    Settings(engine="openvino", weight_format="int8", threads=1, batch=8, max_context=1024),
    Settings(engine="transformers", weight_format="fp32", threads=1, max_context=1024),
)


def main() -> None:
    model = Artifact.open("smollm2-135m-instruct")
    text = model.tokenizer.encode("It was the second hour of the watch, and nothing had moved yet. " * 40)
    print(f"| way | median error | largest | lengths held back |\n|{'---|' * 4}")
    every: list[float] = []
    for way in WAYS:
        errors = held_back_errors(model, text, way)
        every += errors
        print(f"| {way} | {statistics.median(errors):.1%} | {max(errors):.1%} | {len(errors)} |", flush=True)
    print(f"\nmedian over all: {statistics.median(every):.1%}")


def held_back_errors(model: Artifact, text: list[int], way: Settings) -> list[float]:
    """Relative errors of the predictions for each of the lengths held back."""
    costs: dict[tuple[int, int], list[float]] = defaultdict(list)
    steps: list[Step] = []
    fitted_cpu_s = 0.0
    with Engine(model, way) as engine:
        engine.generate([Request(text[:32], 4)] * way.batch)  # warms up
        for number in range(ROUNDS):
            for lengths in (*FITTED, *HELD_BACK):
                n_in, n_out = lengths
                found = engine.generate([Request(text[number : number + n_in], n_out)] * way.batch)
                costs[lengths].append(found.usage.cpu_s)
                if lengths in FITTED:
                    steps += found.steps
                    fitted_cpu_s += found.usage.cpu_s
            print(f"{way}: round {number + 1} of {ROUNDS}", file=sys.stderr)
    per_cpu_s = Energy.estimated(1.0, 1.0, 1.0, "CPU seconds stand for joules")
    fit = CostModel.fit(steps, batch=way.batch, cpu_s=fitted_cpu_s, energy_per_cpu_s=per_cpu_s)
    return [
        abs(
            fit.group_cpu_s([n_in] * way.batch, [n_out] * way.batch) / statistics.median(costs[n_in, n_out])
            - 1
        )
        for n_in, n_out in HELD_BACK
    ]


if __name__ == "__main__":
    main()
