"""Classifiers of texts: an encoder with a head, no cache, no next token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.artifact.safetensors_file import read_json
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.padding import Padded


def labels_of(checkpoint: Path) -> tuple[str, ...]:
    """What a checkpoint tells apart, in the order of its outputs; empty where it is no classifier."""
    config = read_json(checkpoint / "config.json")
    if not str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        return ()
    names = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def labels_in(artifact: Artifact) -> tuple[str, ...]:
    """As `labels_of`, of an artifact."""
    return labels_of(artifact.path) if artifact.formats & {"checkpoint", "packed"} else ()


def forward(model: Any, chunks: Sequence[Chunk]) -> list[Logits]:
    """What a model of transformers says of whole texts: one row of logits, one for each label, for each."""
    import torch

    with torch.inference_mode():
        given = padded(chunks, int(model.config.pad_token_id or 0))
        given = {name: tensor.to(model.device) for name, tensor in given.items()}
        return rows_of(model(**given).logits.float().cpu().numpy())


def rows_of(logits: Logits) -> list[Logits]:
    """Logits of several texts, shape ``(texts, labels)``, as `Backend.forward` returns them."""
    return [row[None] for row in logits]


def padded(chunks: Sequence[Chunk], pad: int) -> dict[str, Any]:
    """Whole texts as the arguments of a model of transformers, with a mask if need be."""
    import torch

    given = Padded.of([chunk.tokens for chunk in chunks], pad)
    found = {"input_ids": torch.from_numpy(given.tokens)}
    return found if given.mask.all() else {**found, "attention_mask": torch.from_numpy(given.mask)}
