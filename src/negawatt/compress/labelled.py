"""`Labelled`: texts with the labels that people gave them, to train a classifier on and to judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negawatt.artifact import Tokenizer
from negawatt.compress.source import Source
from negawatt.errors import UsageError, WorkloadError
from negawatt.workload import Workload
from negawatt.workload.items import ClassifyItem, prompt_text

LEARNT_SHARE = 0.8
"""Share of a workload's items that a classifier is trained on; the others judge it."""

UNKNOWN = -1


@dataclass(frozen=True)
class Labelled:
    """Texts and their labels.

    Attributes:
        origin: where they come from, as in `Calibration`.
        names: the labels, in alphabetical order.
        texts: what is to be classified.
        answers: for each text the place of its label in `names`, or `UNKNOWN`.
    """

    origin: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    answers: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Hash over texts and labels."""
        content = "\0".join([*self.names, "", *self.texts, "", *map(str, self.answers)])
        return hashlib.sha256(content.encode()).hexdigest()

    def with_pieces(self, each: int, seed: int) -> Labelled:
        """The texts, and of each of them `each` random runs of its words, whose labels nobody knows.

        Texts of a single word have no pieces.
        """
        import numpy as np

        draw, pieces = np.random.default_rng(seed), []
        for text in self.texts:
            words = text.split()
            for _ in range(each if len(words) > 1 else 0):
                length = int(draw.integers(1, len(words)))
                start = int(draw.integers(0, len(words) - length + 1))
                pieces.append(" ".join(words[start : start + length]))
        unknown = (UNKNOWN,) * len(pieces)
        return Labelled(self.origin, self.names, (*self.texts, *pieces), (*self.answers, *unknown))

    def encoded(self, source: Source) -> list[list[int]]:
        """The texts as a model reads them, cut to its longest context.

        Raises:
            WorkloadError: a text holds nothing that the model's tokenizer knows.
        """
        return encoded(source.tokenizer, self.texts, longest(source))


def encoded(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> list[list[int]]:
    """Texts as token ids with the frame that the model expects, at most `most` each."""
    frame = tokenizer.encode("", add_special=True)
    found = []
    for text in texts:
        tokens = tokenizer.encode(text, add_special=True)
        if len(tokens) <= len(frame):
            raise WorkloadError(f"a text holds no tokens: {text[:40]!r}; leave it out of the workload")
        if len(tokens) > most:
            tokens = tokens[: most - 1] + tokens[-1:]
        found.append(tokens)
    return found


def longest(source: Source) -> int:
    """Tokens that a model reads at most."""
    positions = int(source.config.get("max_position_embeddings") or 512)
    return positions - (2 if source.config.get("model_type") in OFFSET_POSITIONS else 0)


OFFSET_POSITIONS = ("mpnet", "roberta", "xlm-roberta", "camembert")
"""Encoders that number positions from 2, so that two of their positions are never used."""


def labelled(reference: str, seed: int) -> tuple[Labelled, Labelled]:
    """The labelled items of a workload: those to learn from, and those that judge.

    Raises:
        UsageError: there is no such workload.
        WorkloadError: it holds no items of kind classify, or too few, or they differ in their labels.
    """
    workload = Workload.open(reference)
    items = workload.of_kind(ClassifyItem.kind)
    if not items:
        raise WorkloadError(
            f"{reference} holds no items of kind classify; a classifier learns from texts with labels"
        )
    names = {tuple(sorted(item.labels)) for item in items if isinstance(item, ClassifyItem)}
    if len(names) > 1:
        shown = " and ".join(", ".join(each) for each in sorted(names)[:2])
        raise WorkloadError(f"the items of {reference} differ in their labels: {shown}; use one set for all")
    parts = workload.split(LEARNT_SHARE, seed)
    learnt, held = (_of(f"workload:{workload.name}", part, min(names)) for part in parts)
    if missing := sorted(set(range(len(learnt.names))) - set(learnt.answers)):
        raise WorkloadError(
            f"no item of {reference} to learn from is labelled {learnt.names[missing[0]]!r}; add some"
        )
    return learnt, held


def _of(origin: str, workload: Workload, names: tuple[str, ...]) -> Labelled:
    items = [i for i in workload.of_kind(ClassifyItem.kind) if isinstance(i, ClassifyItem)]
    texts = tuple(prompt_text(item.prompt) for item in items)
    return Labelled(origin, names, texts, tuple(names.index(item.answer) for item in items))


def has_labels(reference: str) -> bool:
    """Whether a reference names a workload with items of kind classify."""
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix != ".toml":
        return False  # a plain text
    try:
        return ClassifyItem.kind in Workload.open(reference).kinds
    except UsageError:
        return False
