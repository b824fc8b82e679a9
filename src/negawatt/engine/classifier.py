"""Classifiers of texts under transformers: an encoder with a head, no cache, no next token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    longest = max(len(chunk.tokens) for chunk in chunks)
    pad = int(model.config.pad_token_id or 0)
    ids = torch.full((len(chunks), longest), pad)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk.tokens)] = torch.tensor(chunk.tokens)
    layout = {}
    if any(len(chunk.tokens) < longest for chunk in chunks):
        lengths = torch.tensor([len(chunk.tokens) for chunk in chunks])
        layout["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    with torch.inference_mode():
        logits = model(input_ids=ids, **layout).logits.float().numpy()
    return [row[None] for row in logits]
