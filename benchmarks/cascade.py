"""What a cascade of two classifiers costs and answers, beside its parts and the large one in transformers.

    python benchmarks/cascade.py --work FOLDER [--batch 64] [--threshold 1.9] [--only cost|accuracy]

Models and texts are those that ``compress_distil.py --work FOLDER --student "minilm, whole"`` leaves, the
texts the fifth that neither model learnt from. The small model is made smaller by ``smoothquant`` here, if it
was not yet. All run on one thread; costs are measured in turn. Accuracy is told for growing shares of texts
that are passed on: the small model labels all, the large one those it is least sure of.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.labelled import LEARNT_SHARE
from negawatt.engine import Engine, Settings
from negawatt.profiling.cascade import Cascade, Runner, answers_of, engines_of
from negawatt.profiling.window import measure
from negawatt.workload import ClassifyItem, Workload, ratio_interval, wilson
from negawatt.workload.writer import write_workload

STOCK_TEXTS = 8
"""Texts of a round in stock transformers, which takes longest."""
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
METRICS = {"classify": "accuracy"}


def settings(engine: str, weights: str, batch: int) -> Settings:
    return Settings(engine, weight_format=weights, threads=1, batch=batch, max_context=128)


def rounding(work: Path) -> Artifact:
    """The small model with weights and inputs of 8 bits, calibrated on texts that it learnt from."""
    output = work / "minilm-whole-8-bits"
    if not output.exists():
        learnt = Workload.open(work / "snippets").split(LEARNT_SHARE, 0)[0].subset(512)
        texts = write_workload(dataclasses.replace(learnt, name="learnt from"), work / "learnt")
        passes = (parse("smoothquant:alpha=0.5"),)
        recipe = Recipe(str(work / "minilm-whole"), passes, str(texts), windows=32, heldout=4, length=64)
        compress(recipe, output, keep_worse=True)
    return Artifact.open(output)


def costs(work: Path, items: list[ClassifyItem], batch: int, threshold: float, rounds: int, n: int) -> None:
    """CPU-milliseconds a text of every way, in turn, and how many times fewer than stock transformers."""
    large, small = Artifact.open(work / "teacher"), Artifact.open(work / "minilm-whole")
    small8 = rounding(work)
    stock = Engine(large, settings("transformers", "fp32", 1))
    ways: dict[str, Runner] = {
        "MPNet, transformers fp32, batch 1": stock,
        "MPNet, openvino int8": Engine(large, settings("openvino", "int8", batch)),
        "MiniLM, openvino int8": Engine(small, settings("openvino", "int8", batch)),
        "MiniLM, openvino, integers": Engine(small8, settings("openvino", "native", batch)),
        f"cascade of the last and MPNet int8, below {threshold:g} nats": Cascade(
            Engine(small8, settings("openvino", "native", batch)),
            Engine(large, settings("openvino", "int8", batch)), threshold, METRICS,
        ),
    }  # fmt: skip
    spent: dict[str, list[float]] = {name: [] for name in ways}
    passed = 0
    try:
        for way in ways.values():
            for engine in engines_of(way):
                engine.open()
            answers_of(way, items[-max(batch, STOCK_TEXTS) :])
        for number in range(rounds):
            part = items[number * n : (number + 1) * n]
            for name, way in ways.items():
                chosen = part[:STOCK_TEXTS] if way is stock else part
                window = measure(way, chosen)
                spent[name].append(window.cpu_s / len(chosen))
            passed += sum(step.sequences for step in window.steps) - len(part)
    finally:
        for way in ways.values():
            for engine in engines_of(way):
                engine.close()
    first = next(iter(spent))
    for name, found in spent.items():
        fewer = "" if name == first else f"  {ratio_interval(spent[first], found).text}"
        print(f"{name:60} {1000 * np.mean(found):7.2f} CPU-ms a text{fewer}", flush=True)
    print(f"passed on: {passed} of {rounds * n}")


def labelled(artifact: Artifact, weights: str, items: list[ClassifyItem]) -> tuple[np.ndarray, np.ndarray]:
    """By how much each text's label leads in nats, and whether it is right."""
    texts = [artifact.tokenizer.encode(str(item.prompt), add_special=True) for item in items]
    with Engine(artifact, settings("openvino", weights, 64)) as engine:
        rows, names = engine.classify(texts).log_probs, engine.labels
    best = rows.argmax(axis=1)
    right = np.array([names[k] == item.answer for k, item in zip(best, items, strict=True)])
    ordered = np.sort(rows, axis=1)
    return ordered[:, -1] - ordered[:, -2], right


def accuracies(work: Path, items: list[ClassifyItem]) -> None:
    """Accuracy by the share of texts that the large model labels."""
    margins, right = labelled(rounding(work), "native", items)
    order = np.argsort(margins)
    unsure = order[: int(SHARES[-1] * len(items)) + 1]
    _, after = labelled(Artifact.open(work / "teacher"), "int8", [items[i] for i in unsure])
    for share in SHARES:
        count = int(share * len(items))
        found = wilson(int(right[order[count:]].sum() + after[:count].sum()), len(items))
        print(
            f"{share:5.0%} passed on, below {margins[order[count]]:5.2f} nats: "
            f"accuracy {found.value:.4f} ({found.low:.4f} to {found.high:.4f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of workload and models")
    parser.add_argument("--only", choices=("cost", "accuracy"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=1.9, help="nats")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64, help="of a round")
    options = parser.parse_args()
    unseen = Workload.open(options.work / "snippets").split(LEARNT_SHARE, 0)[1].quality
    items = [item for item in unseen if isinstance(item, ClassifyItem)]
    shuffled = [items[i] for i in np.random.default_rng(0).permutation(len(items))]
    print(f"{len(items)} texts")
    if options.only != "accuracy":
        costs(options.work, shuffled, options.batch, options.threshold, options.rounds, options.texts)
    if options.only != "cost":
        accuracies(options.work, items)


if __name__ == "__main__":
    main()
