"""Classifiers of texts under transformers: an encoder with a head, no cache, no next token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.safetensors_file import read_json
from negawatt.engine.backend import Chunk, Logits


def labels_of(checkpoint: Path) -> tuple[str, ...]:
    """What a checkpoint tells apart, in the order of its outputs; empty where it is no classifier."""
    config = read_json(checkpoint / "config.json")
    if not str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        return ()
    names = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def forward(model: Any, chunks: Sequence[Chunk]) -> list[Logits]:
    """One row of logits, one for each label, for each chunk, which is a whole text."""
    import torch

    with torch.inference_mode():
        logits = model(**padded(chunks, int(model.config.pad_token_id or 0))).logits.float().numpy()
    return [row[None] for row in logits]


def padded(chunks: Sequence[Chunk], pad: int) -> dict[str, Any]:
    """Whole texts as a model's arguments: filled up on the right, with a mask if need be."""
    import torch

    ids, mask = filled_up(chunks, pad)
    found = {"input_ids": torch.from_numpy(ids)}
    return found if mask.all() else {**found, "attention_mask": torch.from_numpy(mask)}


def filled_up(chunks: Sequence[Chunk], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole texts side by side and where there are tokens, both of shape ``(texts, longest)``."""
    longest = max(len(chunk.tokens) for chunk in chunks)
    ids = np.full((len(chunks), longest), pad, np.int64)
    mask = np.zeros((len(chunks), longest), np.int64)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk.tokens)] = chunk.tokens
        mask[row, : len(chunk.tokens)] = 1
    return ids, mask
