"""A model of transformers as a function of tensors alone, which torch can trace and other runtimes can run.

The model's own code runs, so every architecture that transformers has is traced as it is there. What
differs is the signature: a decoder's cache goes in and comes out as two tensors a layer, and the batch,
the new tokens and those in the cache are free dimensions. Names are those that ONNX files of such models
commonly have.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from negawatt.errors import EngineError, require

BATCH, NEW, PAST = 2, 3, 5
"""Shape of the example: all different, and none 0 or 1, which torch would take for constants."""


@dataclass(frozen=True)
class Traced:
    """What is traced.

    Attributes:
        module: a ``torch.nn.Module`` from tensors to a tuple of tensors.
        example: arguments that it can be called with.
        shapes: the free dimensions of each argument, as ``torch.export`` takes them.
        inputs, outputs: their names, in order.
    """

    module: Any
    example: tuple[Any, ...]
    shapes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def decoder(model: Any) -> Traced:
    """A causal language model as a step of decoding.

    Inputs: ``input_ids`` and ``position_ids``, shape ``(batch, new)``; ``attention_mask``, shape
    ``(batch, past + new)``, 0 for padding on the left; ``logits_to_keep``, which of the new tokens to
    give logits for, from 0; and for each layer ``past_key_values.N.key`` and ``.value``, shape
    ``(batch, heads, past, width)``, whose middle is 0 in the first step. Outputs: ``logits``, shape
    ``(batch, kept, vocabulary)``, and for each layer ``present.N.key`` and ``.value``: the next step's past.

    Raises:
        EngineError: the model keeps something else than keys and values.
    """
    torch = require("torch", extra="transformers")
    layers = cache_layers(model)
    past = [torch.randn(BATCH, heads, PAST, width) for heads, width in layers for _ in range(2)]
    free = torch.export.Dim
    batch, new, old = free("batch"), free("new"), free("past")
    return Traced(
        module=module(model),
        example=(
            torch.ones(BATCH, NEW, dtype=torch.int64),
            torch.ones(BATCH, PAST + NEW, dtype=torch.int64),
            torch.arange(PAST, PAST + NEW).repeat(BATCH, 1),
            torch.arange(NEW - 2, NEW),
            *past,
        ),
        shapes={
            "input_ids": {0: batch, 1: new},
            "attention_mask": {0: batch, 1: free.DYNAMIC},  # type: ignore[attr-defined,unused-ignore]
            "position_ids": {0: batch, 1: new},
            "logits_to_keep": {0: free("kept")},
            "past": tuple({0: batch, 2: old} for _ in past),
        },
        inputs=("input_ids", "attention_mask", "position_ids", "logits_to_keep",
                *(f"past_key_values.{i}.{part}" for i in range(len(layers)) for part in ("key", "value"))),
        outputs=("logits", *(f"present.{i}.{part}" for i in range(len(layers)) for part in ("key", "value"))),
    )  # fmt: skip


HIDDEN, LOGITS = "last_hidden_state", "logits"


def encoder(model: Any, output: str = HIDDEN) -> Traced:
    """A text encoder, or with ``output=LOGITS`` a classifier of texts.

    Inputs: ``input_ids`` and ``attention_mask``, shape ``(batch, length)``. Output: ``last_hidden_state``,
    shape ``(batch, length, hidden)``, or ``logits``, shape ``(batch, labels)``.
    """
    torch = require("torch", extra="transformers")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=_longest(model))
    tokens = torch.ones(BATCH, NEW, dtype=torch.int64)
    free = {0: batch, 1: length}
    return Traced(
        module=module(model, output=output),
        example=(tokens + 4, tokens),  # past the token that some take for padding
        shapes={"input_ids": free, "attention_mask": free},
        inputs=("input_ids", "attention_mask"),
        outputs=(output,),
    )


def cache_layers(model: Any) -> list[tuple[int, int]]:
    """Heads and their width of the keys and values that each layer keeps, found by running the model.

    Raises:
        EngineError: it keeps something else.
    """
    torch, transformers = (
        require("torch", extra="transformers"),
        require("transformers", extra="transformers"),
    )
    cache = transformers.DynamicCache()
    tokens = torch.ones(1, 1, dtype=torch.int64)
    with torch.inference_mode(), quietly():
        model(input_ids=tokens, use_cache=True, **{_cache_argument(model): cache})
    try:
        return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]
    except (AttributeError, IndexError) as exc:
        raise EngineError(
            f"a {type(model).__name__} keeps something else than keys and values between its steps, which "
            "has no traced form here"
        ) from exc


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's and transformers' advice to programmers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def module(
    model: Any, kept: Callable[[tuple[Any, ...], Any, Any], Any] | None = None, *, output: str = HIDDEN
) -> Any:
    """A ``torch.nn.Module`` with the arguments of `decoder`, or of `encoder` where the model has no head.

    Args:
        kept: makes the cache of a decoder out of the past, the mask and the new tokens; it has what comes
            of it, keys and values by layer, in ``present``. One that grows where absent.
        output: of an encoder.
    """
    import torch

    argument = _cache_argument(model) if _decodes(model) else ""
    cache_of = kept or _grown
    rotates = "position_ids" in inspect.signature(model.forward).parameters and any(
        name.endswith("rotary_emb") for name, _ in model.named_modules()
    )

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: Any, attention_mask: Any, position_ids: Any, logits_to_keep: Any, *past: Any
        ) -> tuple[Any, ...]:
            cache = cache_of(past, attention_mask, input_ids)
            logits = self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                logits_to_keep=logits_to_keep, use_cache=True, **{argument: cache},
            ).logits  # fmt: skip
            return (logits, *(part for layer in range(len(past) // 2) for part in cache.present[layer]))

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, ...]:
            given = {}
            if rotates:  # for every row: runtimes have no rotary embedding that holds for all of them
                given["position_ids"] = torch.arange(input_ids.shape[1]).expand(*input_ids.shape)
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, **given)
            return (getattr(found, output),)

    return (Decoder() if argument else Encoder()).eval()


def _grown(past: tuple[Any, ...], _mask: Any, _tokens: Any) -> Any:
    import transformers

    class Grown(transformers.DynamicCache):  # type: ignore[misc]
        @property
        def present(self) -> list[tuple[Any, Any]]:
            return [(layer.keys, layer.values) for layer in self.layers]

    cache = Grown()  # without the model's config: masks alone make windows slide
    for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(key, value, layer)
    return cache


def _decodes(model: Any) -> bool:
    return model.get_output_embeddings() is not None


def _cache_argument(model: Any) -> str:
    """What this version of transformers calls the cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _longest(model: Any) -> int:
    """Tokens that the encoder has positions for; some architectures number them from after the padding."""
    table = next((m for n, m in model.named_modules() if n.endswith("position_embeddings")), None)
    places = int(table.weight.shape[0]) if table is not None else int(model.config.max_position_embeddings)
    padding = getattr(table, "padding_idx", None)
    return places - (0 if padding is None else padding + 1)
