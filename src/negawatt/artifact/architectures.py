"""Architectures that have both a GGUF and a checkpoint form, and how one maps to the other.

Tensor names are mapped by table. Two kinds of tensor also change their values:

* ``llama`` stores query and key rows in GGUF in the order that rotates neighbours (the original
  RoPE), while checkpoints keep the two halves of a head apart; the rows are permuted.
* ``gemma3`` stores norm weights in GGUF with the 1 added that the model adds when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.gguf_file import GgufFile
from negawatt.errors import ArtifactError

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture in both worlds.

    Attributes:
        name: as GGUF calls it.
        model_type: as config.json calls it.
        model_class: the class of transformers that runs it.
        inner: names of a block's tensors, GGUF → checkpoint.
        permuted: whether query and key rows are permuted in GGUF.
        norms_plus_one: whether norm weights have 1 added in GGUF.
    """

    name: str
    model_type: str
    model_class: str
    inner: Mapping[str, str]
    permuted: bool = False
    norms_plus_one: bool = False

    def checkpoint_name(self, name: str) -> str | None:
        """Name in a checkpoint of a tensor of a GGUF file; None for one that has no place there."""
        if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
            block, part, kind = match.groups()
            return f"model.layers.{block}.{self.inner[part]}.{kind}" if part in self.inner else None
        part, _, kind = name.rpartition(".")
        return f"{_OUTER[part]}.{kind}" if part in _OUTER else None

    def gguf_name(self, name: str) -> str | None:
        """Name in a GGUF file of a tensor of a checkpoint; None for one that has no place there."""
        if match := re.fullmatch(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)", name):
            block, part, kind = match.groups()
            found = [g for g, c in self.inner.items() if c == part]
            return f"blk.{block}.{found[0]}.{kind}" if found else None
        part, _, kind = name.rpartition(".")
        found = [g for g, c in _OUTER.items() if c == part]
        return f"{found[0]}.{kind}" if found else None

    def heads_permuted(self, gguf_name: str, n_heads: int, n_kv_heads: int) -> int:
        """Heads whose rows are permuted in this tensor; 0 when it is kept as it is."""
        if not self.permuted:
            return 0
        part = gguf_name.split(".")[-2]
        return {"attn_q": n_heads, "attn_k": n_kv_heads}.get(part, 0)

    def has_plus_one(self, gguf_name: str) -> bool:
        """Whether this tensor is a norm with 1 added in GGUF."""
        return self.norms_plus_one and gguf_name.endswith("norm.weight")


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("llama", "llama", "LlamaForCausalLM", _INNER, permuted=True),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", _INNER),
        Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", {**_INNER, **_HEAD_NORMS}),
        Architecture(
            "gemma3",
            "gemma3_text",
            "Gemma3ForCausalLM",
            {
                **_INNER,
                **_HEAD_NORMS,
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            norms_plus_one=True,
        ),
    )
}


def of_gguf(gguf: GgufFile) -> Architecture:
    """The architecture of a GGUF file.

    Raises:
        ArtifactError: it has no checkpoint form known here, or scales its rotary positions.
    """
    known = ARCHITECTURES.get(gguf.architecture)
    if known is None:
        raise ArtifactError(_unknown(str(gguf.path), gguf.architecture, list(ARCHITECTURES)))
    scaling = gguf.key("rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in gguf.tensors:
        raise ArtifactError(f"{gguf.path} scales its rotary positions, which is not converted yet")
    return known


def of_config(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a checkpoint.

    Raises:
        ArtifactError: it has no GGUF form known here, or scales its rotary positions, or uses an
            option that the GGUF form lacks.
    """
    by_type = {a.model_type: a for a in ARCHITECTURES.values()}
    model_type = str(config.get("model_type", ""))
    if model_type not in by_type:
        raise ArtifactError(_unknown(where, model_type, list(by_type)))
    for rope in _rope_records(config):
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ArtifactError(f"{where} scales its rotary positions, which is not converted yet")
    for option in ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config"):
        if config.get(option) and not (option == "attention_bias" and model_type == "qwen2"):
            raise ArtifactError(f"{where} sets {option}, which is not converted yet")
    return by_type[model_type]


def _rope_records(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every rotary configuration in a config.json, of either layout."""
    found: list[Mapping[str, Any]] = []
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key) or {}
        nested = [v for v in value.values() if isinstance(v, dict)]
        found += nested or [value]
    return found


def rope_theta(config: Mapping[str, Any], layers: str = "full_attention") -> float:
    """The base of the rotary angles, from either layout of config.json.

    Args:
        config: content of config.json.
        layers: ``full_attention`` or ``sliding_attention``, for models that have both.
    """
    parameters = config.get("rope_parameters") or {}
    parameters = parameters.get(layers, parameters)
    older = "rope_local_base_freq" if layers == "sliding_attention" else "rope_theta"
    return float(parameters.get("rope_theta") or config.get(older) or 10_000.0)


def _unknown(where: str, name: str, known: list[str]) -> str:
    return f"{where} is of the architecture {name!r}; {', '.join(known)} can be converted"


def interleave(weight: NDArray[Any], n_heads: int, *, where: str) -> NDArray[Any]:
    """Checkpoint order of query or key rows, shape ``(heads × dim, …)``, to GGUF order.

    Raises:
        ArtifactError: the rows are not `n_heads` heads of an even width; `where` names the tensor.
    """
    rows = weight.reshape(n_heads, 2, _half(weight, n_heads, where), *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def deinterleave(weight: NDArray[Any], n_heads: int, *, where: str) -> NDArray[Any]:
    """GGUF order of query or key rows to checkpoint order; undoes `interleave`."""
    rows = weight.reshape(n_heads, _half(weight, n_heads, where), 2, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def _half(weight: NDArray[Any], n_heads: int, where: str) -> int:
    half, rest = divmod(weight.shape[0], 2 * n_heads)
    if rest:
        raise ArtifactError(
            f"{where} has {weight.shape[0]} rows, which are not {n_heads} heads of an even width"
        )
    return int(half)
