"""Checkpoint or packed weights → GGUF, keeping their precision, loadable by llama.cpp.

A packed matrix keeps its very grid where GGUF has it: symmetric 4 bits as Q4_0, asymmetric 4 bits as
Q4_1, symmetric 8 bits as Q8_0, when its group is a multiple of their 32 weights. Any other packed
matrix is written dequantised.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import architectures, shape, vocabulary
from negawatt.artifact.architectures import Architecture, interleave
from negawatt.artifact.packed_file import AnyTensor, PackedTensor, as_stored, read_packed
from negawatt.artifact.safetensors_file import StoredTensor, read_headers, read_json
from negawatt.artifact.shape import ModelShape
from negawatt.artifact.tokenizer import Tokenizer
from negawatt.catalog.manifest import PACKED_FILE
from negawatt.errors import ArtifactError
from negawatt.home import written_beside

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}
"""``general.file_type`` of a file most of whose weights are stored so."""


def convert(source: Path, target: Path, *, name: str) -> None:
    """Write the GGUF file `target` from the checkpoint or packed folder `source`, whole or not at all.

    Matrices keep their type (F32, F16 or BF16); vectors become F32, as llama.cpp wants them.

    Raises:
        ArtifactError: an architecture, option, tensor or tokenizer without a GGUF form here.
    """
    config = read_json(source / "config.json")
    architecture = architectures.of_config(config, str(source))
    stored = read_packed(source) if (source / PACKED_FILE).is_file() else read_headers(source)
    tensors = _named(source, stored, architecture, config)
    dimensions = shape.from_config(config, stored)
    fields = vocabulary.gguf_fields(Tokenizer.from_checkpoint(source), dimensions.vocab)
    with written_beside(target) as temporary:
        _write(temporary, architecture, dimensions, config, tensors, {"general.name": name, **fields})


def _named(
    source: Path, stored: Mapping[str, AnyTensor], architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, AnyTensor]:
    """The tensors by their GGUF names; a head tied to the embedding is left out."""
    tied = bool(config.get("tie_word_embeddings", False))
    found: dict[str, AnyTensor] = {}
    for name, tensor in stored.items():
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
    tensors: Mapping[str, AnyTensor],
    fields: Mapping[str, Any],
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture.name)
    kinds = {name: _kind(tensor) for name, tensor in tensors.items()}
    if unknown := set(kinds.values()) - set(_FILE_TYPES):
        raise ArtifactError(f"the checkpoint's weights are {unknown.pop()}; F32, F16 and BF16 are converted")
    weights: Counter[str] = Counter()
    for name, kind in kinds.items():
        weights[kind] += math.prod(tensors[name].shape)
    for key, value in {
        "general.type": "model",
        "general.file_type": _FILE_TYPES[weights.most_common(1)[0][0]],
        **_dimension_fields(architecture, dimensions, config),
        **fields,
    }.items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        block, length = _BLOCKS[kinds[name]]
        n_bytes = math.prod(tensor.shape) // block * length
        # The writer takes the shape of quantized rows in bytes.
        shape_ = tensor.shape if block == 1 else (*tensor.shape[:-1], tensor.shape[-1] // block * length)
        writer.add_tensor_info(
            name, shape_, np.dtype(np.float32 if block == 1 else np.uint8), n_bytes,
            GGMLQuantizationType[kinds[name]],
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_weight(name, tensor, kinds[name], architecture, dimensions))
    writer.close()


_BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34)}
"""Weights and bytes of a block of each type that is written."""


def _kind(tensor: AnyTensor) -> str:
    """The GGML type in which a tensor is written."""
    if len(tensor.shape) == 1:
        return "F32"
    if isinstance(tensor, PackedTensor) and tensor.group % 32 == 0 and not tensor.transposed:
        exact = {(4, True): "Q4_0", (4, False): "Q4_1", (8, True): "Q8_0"}
        return exact.get((tensor.bits, tensor.offsets is None), tensor.dtype)
    return tensor.dtype


def _weight(
    name: str, tensor: AnyTensor, kind: str, architecture: Architecture, dimensions: ModelShape
) -> NDArray[Any]:
    """A tensor's values as GGUF holds them."""
    permuted = architecture.heads_permuted(name, dimensions.n_heads, dimensions.n_kv_heads)
    if kind.startswith("Q"):
        assert isinstance(tensor, PackedTensor)
        rows = _blocks(tensor, kind)
        return interleave(rows, permuted, where=name) if permuted else rows
    if isinstance(tensor, StoredTensor):
        weight = tensor.float32() if kind == "F32" else tensor.raw()
    else:
        weight = as_stored(tensor.float32, kind)
    if permuted:
        weight = interleave(weight, permuted, where=name)
    if architecture.has_plus_one(name):
        weight = weight + np.float32(1)
    return np.ascontiguousarray(weight)


def _blocks(tensor: PackedTensor, kind: str) -> NDArray[np.uint8]:
    """Rows of GGML blocks, shape ``(rows, bytes)``; a group of several blocks repeats its scale."""
    rows = tensor.codes.shape[0]
    codes = tensor.unpacked().reshape(rows, -1, 32)
    heads = [tensor.scales] if tensor.offsets is None else [tensor.scales, tensor.offsets]
    halves = [np.repeat(h.raw(), tensor.group // 32, axis=1)[..., None].view(np.uint8) for h in heads]
    # 8 bits: from unsigned around 128 to two's complement; 4 bits: the halves of a block side by side.
    body = codes ^ 0x80 if kind == "Q8_0" else codes[..., :16] | (codes[..., 16:] << 4)
    return np.concatenate([*halves, body], axis=-1).reshape(rows, -1)


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
