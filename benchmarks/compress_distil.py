"""What distilling a classifier saves: accuracy and CPU time of a student against its teacher's.

    python benchmarks/compress_distil.py --work FOLDER [--student PASSES …] [--only train|measure]

Film review snippets that people rated (VADER), four of five to learn from, the fifth to judge. The teacher is
MPNet with a head trained on them, the student a MiniLM that learns from the teacher, whole or cut. Both run
in the transformers engine in fp32, one thread, taking turns on the same held-out texts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.labelled import LEARNT_SHARE
from negawatt.energy import Energy
from negawatt.engine import Engine, Settings
from negawatt.workload import Workload, ratio_interval
from negawatt.workload.items import to_record

TEACHER, TEACHER_PASSES = "mpnet-base", ("classifier:frozen=9,epochs=2,rate=5e-5",)
STUDENT = "minilm-l6"
LEARNING = "distil:teacher={teacher},epochs=4,rate=2e-4,labels=0.1,pieces=1"
STUDENTS = {
    "minilm, 4 of 6 layers": ("depth:ratio=0.34,order=contiguous", LEARNING),
    "minilm, whole": (LEARNING,),
}
HEADER = """schema = 1
name = "snippets"
description = "Film review snippets, as they stand, with the sentiment that people heard in them."
source = "VADER (Hutto and Gilbert 2014)"
licence = "MIT"
[quality]
items = "items.jsonl"
"""


def snippets(folder: Path) -> Path:
    """The workload vader-movies without the words that ask a language model for its opinion."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in Workload.open("vader-movies").quality:
        record = to_record(item)
        record["prompt"] = record["prompt"].removeprefix("Review: ").removesuffix("\nSentiment:")
        lines.append(json.dumps(record))
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "workload.toml").write_text(HEADER, "utf-8")
    return folder


def trained(model: str, passes: tuple[str, ...], texts: Path, output: Path) -> Artifact:
    if not output.exists():
        recipe = Recipe(model, tuple(map(parse, passes)), str(texts), windows=16, heldout=4, length=128)
        compress(recipe, output, keep_worse=True)
    return Artifact.open(output)


def spent(artifact: Artifact) -> tuple[float, Energy]:
    """CPU seconds and energy of all that was done to make it."""
    steps = [step for step in artifact.lineage if step.get("step") == "compress"]
    return sum(s["cpu_s"] for s in steps), Energy.total(Energy.from_json(s["energy"]) for s in steps)


def answered(engine: Engine, items: list[Any]) -> tuple[np.ndarray, float]:
    """Whether each item's label was found, and the CPU seconds that all took."""
    tokens = [engine.artifact.tokenizer.encode(item.prompt, add_special=True) for item in items]
    found = engine.classify(tokens)
    best = [engine.labels[i] for i in found.log_probs.argmax(axis=1)]
    return np.array([b == i.answer for b, i in zip(best, items, strict=True)]), found.usage.cpu_s


def compared(
    teacher: Artifact, student: Artifact, items: list[Any], batch: int, rounds: int
) -> dict[str, Any]:
    """Both on the same texts in turn: accuracies, CPU seconds a text, and the ratio with its interval."""
    settings = Settings(weight_format="fp32", threads=1, batch=batch, max_context=512)
    right: list[list[np.ndarray]] = [[], []]
    costs: list[list[float]] = [[], []]
    with Engine(teacher, settings) as first, Engine(student, settings) as second:
        for engine in (first, second):
            answered(engine, items[: 2 * batch])
        for part in np.array_split(np.arange(len(items)), rounds):
            chosen = [items[i] for i in part]
            for number, engine in enumerate((first, second)):
                correct, cpu_s = answered(engine, chosen)
                right[number].append(correct)
                costs[number].append(cpu_s / len(chosen))
    ours = [np.concatenate(each) for each in right]
    return {
        "right": ours,
        "cost": [float(np.mean(c)) for c in costs],
        "ratio": ratio_interval(costs[1], costs[0]),
    }


def kept_share(teacher: np.ndarray, student: np.ndarray, chance: float) -> tuple[float, float, float]:
    """Share of the teacher's accuracy above chance that the student keeps, 95 % by paired bootstrap."""
    draws = np.random.default_rng(0).integers(0, len(teacher), (2000, len(teacher)))
    shares = (student[draws].mean(1) - chance) / (teacher[draws].mean(1) - chance)
    value = (student.mean() - chance) / (teacher.mean() - chance)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(value), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for workload and models")
    parser.add_argument("--student", action="append", choices=sorted(STUDENTS))
    parser.add_argument("--only", choices=("train", "measure"))
    parser.add_argument("--texts", type=int, default=0, help="held-out texts to measure on; 0: all")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    texts = snippets(options.work / "snippets")
    teacher = trained(TEACHER, TEACHER_PASSES, texts, options.work / "teacher")
    items = list(Workload.open(texts).split(LEARNT_SHARE, 0)[1].quality)
    answers = [item.answer for item in items]
    chance = max(answers.count(label) for label in set(answers)) / len(answers)
    taught, energy = spent(teacher)
    print(f"{len(items)} held-out texts, the commoner label has {chance:.1%}")
    print(f"teacher: {taught:.0f} CPU-seconds of training, {energy}", flush=True)
    for name in options.student or STUDENTS:
        passes = tuple(each.format(teacher=options.work / "teacher") for each in STUDENTS[name])
        student = trained(STUDENT, passes, texts, options.work / name.replace(", ", "-").replace(" ", "-"))
        cpu_s, energy = spent(student)
        print(f"\n{name}: {cpu_s:.0f} CPU-seconds of training, {energy}", flush=True)
        if options.only == "train":
            print(student.lineage[-1]["quality"], student.lineage[-1]["outcome"])
            continue
        for batch in (1, 32):
            found = compared(teacher, student, items[: options.texts or None], batch, options.rounds)
            tell(batch, found, chance, cpu_s, taught)


def tell(batch: int, found: dict[str, Any], chance: float, cpu_s: float, taught_cpu_s: float) -> None:
    """Print a comparison, and after how many texts the training has paid for itself."""
    right, (before, after) = found["right"], found["cost"]
    share, low, high = kept_share(*right, chance)
    saved = before - after
    print(f"  batch {batch}: accuracy {right[0].mean():.4f} → {right[1].mean():.4f}")
    print(f"    above chance: {share:.3f} of the teacher's ({low:.3f}–{high:.3f})")
    print(f"    CPU-ms a text {1000 * before:.2f} → {1000 * after:.2f}, {found['ratio'].text}")
    print(f"    paid back after {cpu_s / saved:,.0f} texts", end="")
    print(f", with the teacher's training after {(cpu_s + taught_cpu_s) / saved:,.0f}", flush=True)


if __name__ == "__main__":
    main()
