"""GGUF → checkpoint: config.json, fp32 safetensors and tokenizer files that transformers opens."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import architectures, shape
from negawatt.artifact.architectures import Architecture, deinterleave
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.safetensors_file import Row, write_safetensors
from negawatt.artifact.tokenizer import Tokenizer
from negawatt.errors import ArtifactError
from negawatt.home import write_json, written_beside


def convert(source: Path, target: Path) -> None:
    """Write the folder `target` from the GGUF file `source`, whole or not at all.

    Weights are dequantised to fp32 one tensor at a time, so memory stays at the largest tensor.

    Raises:
        ArtifactError: an architecture, tensor type or tokenizer that has no checkpoint form here.
    """
    gguf = GgufFile.open(source)
    architecture = architectures.of_gguf(gguf)
    config = _config(gguf, architecture)
    tokenizer = Tokenizer.from_gguf(gguf)
    with written_beside(target) as folder:
        folder.mkdir()
        _weights(gguf, architecture, folder / "model.safetensors")
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", _generation(tokenizer))
        write_json(folder / "tokenizer_config.json", _tokenizer_config(gguf, tokenizer))
        (folder / "tokenizer.json").write_text(tokenizer.definition, "utf-8")


def _weights(gguf: GgufFile, architecture: Architecture, target: Path) -> None:
    heads, kv_heads = _heads(gguf)

    def dense(name: str) -> NDArray[np.float32]:
        weight = gguf.dequantized(name)
        if permuted := architecture.heads_permuted(name, heads, kv_heads):
            weight = deinterleave(weight, permuted, where=f"{gguf.path}: {name}")
        if architecture.has_plus_one(name):
            weight = weight - np.float32(1)
        return weight

    rows = []
    for name, tensor in gguf.tensors.items():
        mapped = architecture.checkpoint_name(name)
        if mapped is None:
            raise ArtifactError(
                f"{gguf.path} holds {name}, which a {architecture.name} checkpoint has no place for"
            )
        rows.append(Row(mapped, "F32", tensor.shape, functools.partial(dense, name)))
    write_safetensors(target, rows)


def _heads(gguf: GgufFile) -> tuple[int, int]:
    heads = int(gguf.key("attention.head_count"))
    return heads, int(gguf.key("attention.head_count_kv", heads))


def _decimal(value: float) -> float:
    """The short decimal that a 32-bit float of a header was written from (1e-05, not 9.99999e-06)."""
    return float(f"{value:.7g}")


def _config(gguf: GgufFile, architecture: Architecture) -> dict[str, Any]:
    dimensions = shape.from_gguf(gguf)
    theta = _decimal(gguf.key("rope.freq_base", 10_000.0))
    rotated = int(gguf.key("rope.dimension_count", dimensions.head_dim))
    if rotated != dimensions.head_dim:
        raise ArtifactError(
            f"{gguf.path} rotates {rotated} of {dimensions.head_dim} dimensions of a head, not all"
        )
    data = gguf.metadata
    config: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type,
        "hidden_size": dimensions.hidden,
        "intermediate_size": dimensions.ffn,
        "num_hidden_layers": dimensions.n_layers,
        "num_attention_heads": dimensions.n_heads,
        "num_key_value_heads": dimensions.n_kv_heads,
        "head_dim": dimensions.head_dim,
        "rms_norm_eps": _decimal(gguf.key("attention.layer_norm_rms_epsilon")),
        "vocab_size": dimensions.vocab,
        "max_position_embeddings": dimensions.max_context,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": dimensions.tied_embeddings,
        "attention_dropout": 0.0,
        "torch_dtype": "float32",
        "bos_token_id": data.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": data.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": data.get("tokenizer.ggml.padding_token_id"),
    }
    if architecture.name == "llama":
        config["mlp_bias"] = False
    if architecture.name != "qwen2":
        config["attention_bias"] = False
    if architecture.name != "gemma3":
        config["hidden_act"] = "silu"
    else:
        config.update(_gemma3(gguf, dimensions.n_layers, dimensions.head_dim, theta))
    return config


def _gemma3(gguf: GgufFile, n_layers: int, head_dim: int, theta: float) -> dict[str, Any]:
    """Five sliding layers to one full layer; the sliding ones rotate with a base of their own."""
    local = _decimal(gguf.key("rope.freq_base_swa", 10_000.0))
    period = int(gguf.key("attention.sliding_window_pattern", 6))
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head_dim,
        "sliding_window": int(gguf.key("attention.sliding_window")),
        "layer_types": [
            "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n_layers)
        ],
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    content = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    return {name: value for name, value in content.items() if value not in (None, [])}


def _tokenizer_config(gguf: GgufFile, tokenizer: Tokenizer) -> dict[str, Any]:
    data = gguf.metadata
    tokens = data["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(gguf.key("context_length")),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = data.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{name}_token"] = tokens[index]
    if tokenizer.chat_template:
        config["chat_template"] = tokenizer.chat_template
    return config
