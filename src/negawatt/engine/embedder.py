"""Texts into vectors: last hidden states, pooled to one vector a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.artifact.pooling import Pooling
from negawatt.artifact.safetensors_file import read_json
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.classifier import padded
from negawatt.errors import EngineError

Array = NDArray[np.float32]


def width(model: Any, pooling: Pooling) -> int:
    """Length of the vectors of a model of transformers."""
    return int(model.config.hidden_size) * len(pooling.modes)


def forward(model: Any, chunks: Sequence[Chunk], pooling: Pooling) -> list[Logits]:
    """One row, the vector, for each chunk, which is a whole text."""
    import torch

    with torch.inference_mode():
        given = padded(chunks, int(model.config.pad_token_id or 0))
        given = {name: tensor.to(model.device) for name, tensor in given.items()}
        states: Array = model(**given).last_hidden_state.float().cpu().numpy()
    return rows_of(states, chunks, pooling)


POOLING = "pooling.json"
"""Beside an encoder that was made for another runtime: how its states are pooled, and its padding token."""


def kept(artifact: Artifact, pooling: Pooling) -> str:
    """What `POOLING` holds for an artifact."""
    config = read_json(artifact.path / "config.json")
    width = int(pooling.width or 0)
    return json.dumps({**asdict(pooling), "width": width, "pad": int(config.get("pad_token_id") or 0)})


def found(folder: Path, asked: str) -> tuple[Pooling, int] | None:
    """The pooling of a folder, or what is asked for in its place, and the padding token; None without one.

    Raises:
        EngineError: the folder holds a model that writes text, which no pooling is known for.
    """
    file = folder / POOLING
    if not file.is_file():
        if asked != "default":
            raise EngineError("models that write text are embedded with by transformers only")
        return None
    told = json.loads(file.read_text("utf-8"))
    pad = int(told.pop("pad"))
    whole = Pooling(**{**told, "modes": tuple(told["modes"]), "dimensions": None})
    if asked == "default":
        return whole, pad
    width = (whole.width or 0) // len(whole.modes)
    return replace(whole, modes=(asked,), width=width), pad


def rows_of(states: Array, chunks: Sequence[Chunk], pooling: Pooling) -> list[Logits]:
    """Pool states of shape ``(texts, tokens, width)``, filled up on the right; one row for each chunk."""
    lengths = np.array([len(chunk.tokens) for chunk in chunks])
    vectors = np.concatenate([_pooled(states, lengths, mode) for mode in pooling.modes], axis=1)
    if pooling.normalized:
        vectors = of_length_1(vectors)
    return [row[None] for row in vectors.astype(np.float32)]


def of_length_1(vectors: Array) -> Array:
    """Vectors in rows, each divided by its length; one of zeros stays."""
    scaled: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def _pooled(states: Array, lengths: NDArray[np.int64], mode: str) -> Array:
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        last: Array = states[np.arange(len(states)), lengths - 1]
        return last
    held = np.arange(states.shape[1]) < lengths[:, None]
    if mode == "max":
        highest: Array = np.where(held[..., None], states, -np.inf).max(axis=1)
        return highest
    weights = held.astype(np.float32)
    if mode == "weightedmean":
        weights *= np.arange(1, states.shape[1] + 1, dtype=np.float32)
    whole: Array = np.einsum("btw,bt->bw", states, weights)
    shares = weights.sum(axis=1, keepdims=True)
    divided: Array = whole / (np.sqrt(shares) if mode == "mean_sqrt_len_tokens" else shares)
    return divided
