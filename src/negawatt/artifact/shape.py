"""`ModelShape`: the dimensions of a transformer, read without loading its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.packed_file import AnyTensor
from negawatt.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a model.

    Attributes:
        architecture: the name that GGUF gives it (``llama``, ``qwen2``, ``gemma3``, ``bert``).
        n_layers: transformer blocks.
        hidden: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: width of a head.
        ffn: inner width of the feed-forward part.
        vocab: rows of the embedding.
        n_params: weights stored (a tied head is not counted twice).
        tied_embeddings: the output head is the embedding.
        max_context: most tokens the model was made for.
    """

    architecture: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    n_params: int
    tied_embeddings: bool
    max_context: int


def from_gguf(gguf: GgufFile) -> ModelShape:
    """The shape that a GGUF header states.

    Raises:
        ArtifactError: a dimension is not stated.
    """
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise ArtifactError(f"{gguf.path} holds no token embedding")
    try:
        hidden, heads = int(gguf.key("embedding_length")), int(gguf.key("attention.head_count"))
        return ModelShape(
            architecture=gguf.architecture,
            n_layers=int(gguf.key("block_count")),
            hidden=hidden,
            n_heads=heads,
            n_kv_heads=int(gguf.key("attention.head_count_kv", heads)),
            head_dim=int(gguf.key("attention.key_length", hidden // heads)),
            ffn=int(gguf.key("feed_forward_length")),
            vocab=embedding.shape[0],
            n_params=sum(math.prod(t.shape) for t in gguf.tensors.values() if t.name != "rope_freqs.weight"),
            tied_embeddings="output.weight" not in gguf.tensors,
            max_context=int(gguf.key("context_length")),
        )
    except (TypeError, ValueError, ZeroDivisionError) as exc:
        raise ArtifactError(f"{gguf.path} does not describe a transformer with equal layers: {exc}") from exc


MODEL_TYPES = {"gemma3_text": "gemma3"}
"""Names of config.json that GGUF spells differently."""

_GPT2_NAMES = {
    "n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size", "n_positions": "max_position_embeddings",
}  # fmt: skip


def from_config(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor]) -> ModelShape:
    """The shape that a config.json and the safetensors headers state.

    Raises:
        ArtifactError: a dimension is not stated.
    """
    config = {_GPT2_NAMES.get(key, key): value for key, value in config.items()}
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        model_type = str(config["model_type"])
        if model_type == "gpt2":  # states the inner width only where it is not the usual one
            config["intermediate_size"] = config.get("intermediate_size") or 4 * hidden
        return ModelShape(
            architecture=MODEL_TYPES.get(model_type, model_type),
            n_layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            n_heads=heads,
            n_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            ffn=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            n_params=sum(math.prod(t.shape) for t in tensors.values() if t.dtype[0] in "FB"),
            tied_embeddings=not any(name.endswith("lm_head.weight") for name in tensors),
            max_context=int(config["max_position_embeddings"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as exc:
        raise ArtifactError(f"config.json does not describe a transformer: {exc!r}") from exc
