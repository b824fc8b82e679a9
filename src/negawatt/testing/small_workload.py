"""A small workload of labelled texts that can be learnt: for tests of passes that train classifiers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

WORDS = {
    "warm": ["warm", "bread", "harbour", "children", "pears", "house", "awake", "evening"],
    "cold": ["rain", "wall", "stones", "knock", "drawer", "noon", "counting", "train"],
}
"""Words of `negawatt.testing.small_models.TEXT` by the label of the texts that they make."""

_HEADER = """schema = 1
name = "weather"
description = "Texts of a few words that tell their label."
source = "made"
licence = "Apache-2.0"
[quality]
items = "items.jsonl"
"""


def small_workload(folder: Path, n: int = 60, labels: Sequence[str] = ("warm", "cold")) -> Path:
    """Write a workload of `n` texts, each made of words of one label, as often of one as of the other."""
    lines = []
    for number in range(n):
        kind = number % 2
        known = list(WORDS.values())[kind]
        words = [known[(number * 5 + place * place) % len(known)] for place in range(3 + number % 7)]
        lines.append({
            "id": f"text-{number}", "kind": "classify", "prompt": " ".join(words), "labels": list(labels),
            "answer": labels[kind],
        })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "workload.toml").write_text(_HEADER, "utf-8")
    return folder
