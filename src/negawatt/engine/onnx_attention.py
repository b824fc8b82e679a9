"""A decoder whose attention is ONNX Runtime's own operator, ``com.microsoft::GroupQueryAttention``.

Plain ONNX puts the keys and values so far and the new ones together in every layer and step, repeats them
for every head of the queries and moves both back and forth. This operator takes them as the matrices give
them, and where the past and the present are one and the same buffer, longer than what it holds, it writes
the new ones in place. Masks of any kind (padding, windows) are added to the scores.

The signature is that of `negawatt.engine.traced.decoder`: whoever hands in a past of just its own length
gets a present that is longer by the new tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from negawatt.engine import traced
from negawatt.errors import require

NAME = "negawatt_onnx"
"""Of this attention among transformers' own."""

WIDTHS = 8
"""The operator wants heads that are a multiple of this wide."""


class _Unfit(Exception):
    """The operator cannot do what a layer asks for."""


def decoder(model: Any) -> traced.Traced:
    """A causal language model as a step of decoding; in plain ONNX where some layer attends in another way.

    Raises:
        EngineError: the model keeps something else than keys and values.
    """
    plain = traced.decoder(model)
    before = model.config._attn_implementation
    caches: list[Any] = []

    def kept(past: tuple[Any, ...], mask: Any, tokens: Any) -> Any:
        caches[:] = [_cache(past, mask, tokens)]
        return caches[0]

    _offer(caches)
    try:
        with traced.quietly():
            model.set_attn_implementation(NAME)
            fused = replace(plain, module=traced.module(model, kept))
            _try(fused, caches)
    except (_Unfit, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        model.set_attn_implementation(before)
        return plain
    return fused


def _try(fused: traced.Traced, caches: list[Any]) -> None:
    """Call it once: every layer must come by the attention above."""
    import torch

    with torch.inference_mode():
        fused.module(*fused.example)
    if len(caches[0].present) * 2 != len(fused.outputs) - 1:
        raise _Unfit("some layers do not ask transformers for their attention")


def _offer(caches: list[Any]) -> None:
    """Make the attention known to transformers, which from then on looks into the newest of `caches`."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None,
        dropout: float = 0.0, softcap: float | None = None, **others: Any,
    ) -> tuple[Any, None]:  # fmt: skip
        (cache,) = caches
        rows, heads, new, width = query.shape
        odd = others.get("position_bias") is not None or others.get("s_aux") is not None
        if odd or mask is None or width % WIDTHS or key.shape[-1] != width or value.shape != key.shape:
            raise _Unfit("the operator has no such attention")
        grown = (rows, key.shape[1], cache.total, width)
        out, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*(x.transpose(1, 2).reshape(rows, new, -1) for x in (query, key, value)),
             *cache.past[module.layer_idx], cache.last, cache.lengths, None, None, None, mask),
            {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": float(scaling or width**-0.5),
             "softcap": float(softcap or 0.0)},
            dtypes=(query.dtype,) * 3, shapes=((rows, new, heads * width), grown, grown), version=1,
        )  # fmt: skip
        cache.present[module.layer_idx] = present
        return out.reshape(rows, new, heads, width), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)


def _cache(past: tuple[Any, ...], mask: Any, tokens: Any) -> Any:
    import torch
    import transformers

    class Passed(transformers.DynamicCache):  # type: ignore[misc]
        """What was kept, handed on to the operator; new keys and values pass through.

        Attributes:
            past, present: keys and values by layer.
            total: tokens up to the last new one.
            lengths, last: that number, shape ``(1,)``, and the last one's place in each row.
        """

        def __init__(self) -> None:
            super().__init__()
            self.past = list(zip(past[::2], past[1::2], strict=True))
            self.present: dict[int, Any] = {}
            self.total = mask.shape[1]
            self.lengths = torch.full((1,), self.total, dtype=torch.int32)
            self.last = torch.full((1,), self.total - 1, dtype=torch.int32).expand(mask.shape[0]).contiguous()

        def update(self, key: Any, value: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
            return key, value

        def get_seq_length(self, layer_idx: int = 0) -> Any:
            return self.total - tokens.shape[1]

        def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[Any, int]:
            return self.total, 0

    return Passed()


def straighten(model: Any) -> int:
    """Take out of a graph what only moves heads to and fro around the operator; how many there were.

    Rotary positions are laid on what the matrix gives, as it lies. The graph is changed in place.

    Args:
        model: an ``onnx_ir.Model``.
    """
    ir = require("onnx_ir", extra="onnx")
    graph = model.graph
    found = [node for node in graph if node.op_type == "GroupQueryAttention"]
    for node in found:
        for place, heads in ((0, "num_heads"), (1, "kv_num_heads")):
            if (rotated := _rotated(ir, node.inputs[place], node.attributes[heads].as_int())) is not None:
                graph.insert_before(node, rotated)
                node.replace_input_with(place, rotated.outputs[-1])
        node.replace_input_with(2, _flat(node.inputs[2]))
        for use in node.outputs[0].uses():
            for again in [u.node for u in use.node.outputs[0].uses() if use.node.op_type == "Reshape"]:
                if again.op_type == "Reshape" and _rank(again.outputs[0]) == 3:
                    ir.convenience.replace_all_uses_with(again.outputs[0], node.outputs[0])
    require("onnx_ir.passes.common", extra="onnx").RemoveUnusedNodesPass()(model)
    return len(found)


def _rotated(ir: Any, value: Any, heads: int) -> Any:
    """A rotary embedding of ``(batch, new, heads × width)`` that gives `value`; None where none is."""
    flat = _made_by("Reshape", value)
    turned = _made_by("Transpose", flat and flat.inputs[0])
    rotary = _made_by("RotaryEmbedding", turned and turned.inputs[0])
    first = _made_by("Transpose", rotary and rotary.inputs[0])
    if first is None or any(list(t.attributes["perm"].as_ints()) != [0, 2, 1, 3] for t in (turned, first)):
        return None
    whole = _flat(first.inputs[0])
    if _rank(whole) != 3:
        return None
    facts = [a for a in rotary.attributes.values() if a.name != "num_heads"]
    return ir.Node(
        rotary.domain, "RotaryEmbedding", [whole, *rotary.inputs[1:]],
        [*facts, ir.AttrInt64("num_heads", heads)], num_outputs=1,
    )  # fmt: skip


def _flat(value: Any) -> Any:
    """What was reshaped into `value` and is ``(batch, new, all heads)`` too; `value` itself without that."""
    found, node = value, _made_by("Reshape", value)
    while node is not None:
        source = node.inputs[0]
        if _rank(source) == 3 and (_rank(value) != 3 or source.shape[2] == value.shape[2]):
            found = source
        node = _made_by("Reshape", source)
    return found


def _made_by(operator: str, value: Any) -> Any:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _rank(value: Any) -> int:
    return 0 if value.shape is None else len(value.shape)
