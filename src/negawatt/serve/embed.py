"""`EmbedAsk`: a body of ``/v1/embeddings``, understood, and its answer."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from negawatt.artifact import Tokenizer
from negawatt.artifact.pooling import Pooling
from negawatt.serve.ask import is_tokens, known_tokens
from negawatt.serve.fields import Fields, wrong
from negawatt.serve.task import Task

MOST_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class EmbedAsk:
    """What a client wants.

    Attributes:
        model: name.
        inputs: texts or token ids.
        encoding: of the vectors: numbers, or base64 of little-endian 32-bit floats.
        dimensions: to which they are cut; None: as long as they are.
    """

    model: str
    inputs: Sequence[str | list[int]]
    encoding: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def tokens(self, tokenizer: Tokenizer, pooling: Pooling, most: int) -> list[list[int]]:
        """The inputs as token ids: texts with the model's special tokens, ids as they are.

        Raises:
            Refused: one is empty, longer than `most`, or holds what is no token of the model.
        """
        found = []
        for number, text in enumerate(self.inputs):
            if isinstance(text, str):
                ids = tokenizer.encode(pooling.prompt + text, add_special=True)
            else:
                ids = known_tokens(text, tokenizer, "input")
            if not text or not ids:
                raise wrong("input", f"input {number} is empty")
            if len(ids) > most:
                raise wrong(
                    "input",
                    f"this model's maximum context length is {most} tokens, but input {number} has "
                    f"{len(ids)}; divide it",
                    "context_length_exceeded",
                )
            found.append(ids)
        return found

    def check(self, pooling: Pooling) -> None:
        """
        Raises:
            Refused: the model's vectors may not be cut to so many dimensions.
        """
        if self.dimensions is None or self.dimensions == pooling.width:
            return
        allowed = pooling.dimensions
        if allowed == ():
            why = f"{self.model} was not trained for vectors that are cut"
            raise wrong("dimensions", why, "unsupported_parameter")
        if allowed is not None and self.dimensions not in allowed:
            raise wrong("dimensions", f"dimensions must be one of {', '.join(map(str, allowed))}")
        if pooling.width is not None and self.dimensions > pooling.width:
            raise wrong("dimensions", f"dimensions must be at most {pooling.width}")


def embed_ask(body: Any) -> EmbedAsk:
    """Read a body of ``/v1/embeddings``.

    Raises:
        Refused: something is wrong or not supported, by name.
    """
    fields = Fields(body)
    model = fields.text("model")
    inputs = _inputs(fields.take("input"))
    encoding = fields.text("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise wrong("encoding_format", "encoding_format must be float or base64")
    dimensions = fields.whole("dimensions", None, 1, 2**20)
    fields.take("user")
    fields.refuse_rest()
    return EmbedAsk(model, inputs, encoding, dimensions)  # type: ignore[arg-type]


def embedded(ask: EmbedAsk, task: Task, *, normalized: bool) -> dict[str, Any]:
    """The body of the answer; vectors that are cut get back their length of 1 where the model's have it."""
    assert task.receipt is not None
    data = []
    for choice in task.choices:
        vector = np.frombuffer(choice.vector, "<f4")
        if ask.dimensions is not None and ask.dimensions < len(vector):
            vector = vector[: ask.dimensions]
            if normalized:
                vector = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f4")
        told: Any = vector.tolist()
        if ask.encoding == "base64":
            told = base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": choice.index, "embedding": told})
    read = task.receipt.input_tokens
    usage = {"prompt_tokens": read, "total_tokens": read, "energy": task.receipt.to_json()}
    return {"object": "list", "data": data, "model": task.reservation.model, "usage": usage}


def _inputs(value: Any) -> list[str | list[int]]:
    if value is None:
        raise wrong("input", "you must provide input", "missing_required_parameter")
    values = [value] if isinstance(value, str) or is_tokens(value) else value
    fits = isinstance(values, list) and all(isinstance(v, str) or is_tokens(v) for v in values)
    if not fits or not values:
        raise wrong("input", "input must be a string, a list of strings, or of token ids")
    if len(values) > MOST_INPUTS:
        raise wrong("input", f"input may hold {MOST_INPUTS} texts, not {len(values)}")
    return values
