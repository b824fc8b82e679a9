"""How many bytes a model's weights take when they are stored in given widths."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from negawatt.artifact import Artifact
from negawatt.artifact.safetensors_file import read_headers

OVERHEAD_BYTES = 2_000_000
"""What a graph and its names may take beside the weights."""
TOLERANCE = 0.05

_OUTER = re.compile(r"(embed_tokens|word_embeddings|wte|lm_head)\.weight$")
_BUFFERS = re.compile(r"(inv_freq|position_ids|attn\.bias|attn\.masked_bias)$")
_ABSENT = re.compile(r"pooler\.")
"""Not part of what is exported: encoders give hidden states."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits of a stored weight, shares of scales and zeros included.

    Attributes:
        inner: of the matrices of the blocks.
        outer: of the embedding and the head.
        other: of vectors and of whatever is looked up by position.
    """

    inner: float
    outer: float
    other: float = 32.0


def predicted(artifact: Artifact, widths: Widths | int) -> int:
    """Bytes of all weights, the head that is tied to the embedding counted once."""
    if isinstance(widths, int):
        return widths
    bits = 0.0
    for name, tensor in read_headers(artifact.checkpoint()).items():
        if _BUFFERS.search(name) or _ABSENT.search(name):
            continue
        if _OUTER.search(name):
            if "lm_head" in name and artifact.shape.tied_embeddings:
                continue
            width = widths.outer
        elif len(tensor.shape) > 1 and "embeddings" not in name and not name.endswith("wpe.weight"):
            width = widths.inner
        else:
            width = widths.other
        bits += math.prod(tensor.shape) * width
    return int(bits / 8)


def as_promised(n_bytes: int, promised: int) -> bool:
    """Whether weights take what their types predict."""
    return abs(n_bytes - promised) <= TOLERANCE * promised + OVERHEAD_BYTES
