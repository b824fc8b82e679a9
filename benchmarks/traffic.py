"""Lengths of real requests, from a trace of a public cloud's language models."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"
"""Where traces lie beside the repository; they are not part of it."""


@dataclass(frozen=True)
class Length:
    """Tokens that a request reads, and that it writes."""

    reads: int
    writes: int


def lengths(file: Path, number: int, seed: int, *, scale: float, most: int) -> list[Length]:
    """Some requests of a trace, drawn at random, their lengths scaled down to what a small machine can do.

    Args:
        file: CSV with the columns ContextTokens and GeneratedTokens, as the Azure LLM inference traces have.
        scale: by which both are multiplied; each stays at least 4.
        most: tokens of prompt and answer together; longer ones are left out before drawing.
    """
    found = []
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            length = Length(
                max(4, round(scale * int(line["ContextTokens"]))),
                max(4, round(scale * int(line["GeneratedTokens"]))),
            )
            if length.reads + length.writes <= most:
                found.append(length)
    return random.Random(seed).sample(found, number)
