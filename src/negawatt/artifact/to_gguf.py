"""Checkpoint → GGUF, keeping the precision of the weights, loadable by llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import architectures, shape, vocabulary
from negawatt.artifact.architectures import Architecture, interleave
from negawatt.artifact.safetensors_file import StoredTensor, read_headers, read_json
from negawatt.artifact.shape import ModelShape
from negawatt.artifact.tokenizer import Tokenizer
from negawatt.errors import ArtifactError
from negawatt.home import written_beside

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""``general.file_type`` of a file whose matrices are stored so."""


def convert(source: Path, target: Path, *, name: str) -> None:
    """Write the GGUF file `target` from the checkpoint folder `source`, whole or not at all.

    Matrices keep their type (F32, F16 or BF16); vectors become F32, as llama.cpp wants them.

    Raises:
        ArtifactError: an architecture, option, tensor or tokenizer without a GGUF form here.
    """
    config = read_json(source / "config.json")
    architecture = architectures.of_config(config, str(source))
    tensors = _named(source, architecture, config)
    dimensions = shape.from_config(config, read_headers(source))
    fields = vocabulary.gguf_fields(Tokenizer.from_checkpoint(source), dimensions.vocab)
    with written_beside(target) as temporary:
        _write(temporary, architecture, dimensions, config, tensors, {"general.name": name, **fields})


def _named(source: Path, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The checkpoint's tensors by their GGUF names; a head tied to the embedding is left out."""
    tied = bool(config.get("tie_word_embeddings", False))
    found: dict[str, StoredTensor] = {}
    for name, tensor in read_headers(source).items():
        mapped = architecture.gguf_name(name)
        if (mapped == "output.weight" and tied) or re.search(r"rotary_emb\.inv_freq$", name):
            continue
        if mapped is None:
            raise ArtifactError(f"{source} holds {name}, which a {architecture.name} GGUF has no place for")
        found[mapped] = tensor
    return found


def _write(
    path: Path,
    architecture: Architecture,
    dimensions: ModelShape,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    fields: Mapping[str, Any],
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture.name)
    stored = tensors["token_embd.weight"].dtype
    if stored not in _FILE_TYPES:
        raise ArtifactError(f"the checkpoint's weights are {stored}; F32, F16 and BF16 are converted")
    for key, value in {
        "general.type": "model",
        "general.file_type": _FILE_TYPES[stored],
        **_dimension_fields(architecture, dimensions, config),
        **fields,
    }.items():
        _add(writer, key, value)
    kinds = {}
    for name, tensor in tensors.items():
        kind = kinds[name] = "F32" if len(tensor.shape) == 1 else tensor.dtype
        width = 4 if kind == "F32" else 2
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), tensor.n_bytes // tensor.itemsize * width,
            GGMLQuantizationType[kind],
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_weight(name, tensor, kinds[name], architecture, dimensions))
    writer.close()


def _weight(
    name: str, tensor: StoredTensor, kind: str, architecture: Architecture, dimensions: ModelShape
) -> NDArray[Any]:
    """A tensor's values as GGUF holds them."""
    weight = tensor.float32() if kind == "F32" else tensor.raw()
    if permuted := architecture.heads_permuted(name, dimensions.n_heads, dimensions.n_kv_heads):
        weight = interleave(weight, permuted, where=f"{tensor.file}: {name}")
    if architecture.has_plus_one(name):
        weight = weight + np.float32(1)
    return np.ascontiguousarray(weight)


def _dimension_fields(
    architecture: Architecture, dimensions: ModelShape, config: Mapping[str, Any]
) -> dict[str, Any]:
    theta = architectures.rope_theta(config)
    fields: dict[str, Any] = {
        "vocab_size": dimensions.vocab,
        "context_length": dimensions.max_context,
        "embedding_length": dimensions.hidden,
        "block_count": dimensions.n_layers,
        "feed_forward_length": dimensions.ffn,
        "attention.head_count": dimensions.n_heads,
        "attention.head_count_kv": dimensions.n_kv_heads,
        "attention.key_length": dimensions.head_dim,
        "attention.value_length": dimensions.head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": dimensions.head_dim,
        "rope.freq_base": theta,
    }
    if architecture.name == "gemma3":
        fields["attention.sliding_window"] = int(config["sliding_window"])
        fields["rope.freq_base_swa"] = architectures.rope_theta(config, "sliding_attention")
        _require_gemma3(config, dimensions)
    return {f"{architecture.name}.{key}": value for key, value in fields.items()}


def _require_gemma3(config: Mapping[str, Any], dimensions: ModelShape) -> None:
    """Refuse what llama.cpp's gemma3 fixes to other values."""
    full = [i for i, kind in enumerate(config.get("layer_types") or []) if kind == "full_attention"]
    if full and full != list(range(5, dimensions.n_layers, 6)):
        raise ArtifactError("this gemma3 checkpoint has full attention in other than every sixth layer")
    if config.get("query_pre_attn_scalar", dimensions.head_dim) != dimensions.head_dim:
        raise ArtifactError("this gemma3 checkpoint scales its queries by other than the head dimension")


def _add(writer: Any, key: str, value: Any) -> None:
    """Add one field under the type that its Python type means."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
