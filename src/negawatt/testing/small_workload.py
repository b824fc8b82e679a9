"""Small workloads: labelled texts that can be learnt, for tests of passes, and documents to search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from negawatt.testing.small_models import TEXT

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


_SEARCH = """schema = 1
name = "words"
description = "Texts of a few words, and some words of each to find it by."
source = "made"
licence = "Apache-2.0"
[quality]
items = "queries.jsonl"
[corpus]
items = "corpus.jsonl"
"""


def small_search(folder: Path, n: int = 48, *, known: bool = True, more: str = "") -> Path:
    """Write a workload of `n` documents, and as many queries, each of words of one document.

    Args:
        known: whether queries say which document that is.
        more: lines of the header's ``[corpus]``.
    """
    words = sorted(set(TEXT.lower().replace(".", " ").replace(",", " ").replace(";", " ").split()))
    documents, queries = [], []
    for number in range(n):
        own = [words[(number * 5 + place * (number % 7 + 2)) % len(words)] for place in range(12)]
        documents.append({"id": f"text-{number}", "text": " ".join(own)})
        relevant = {"relevant": [f"text-{number}"]} if known else {}
        query = {"id": f"query-{number}", "kind": "retrieve", "query": " ".join(own[2:8])}
        queries.append({**query, **relevant})
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "workload.toml").write_text(_SEARCH + more, "utf-8")
    return folder
