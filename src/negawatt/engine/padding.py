"""`Padded`: whole texts of unequal lengths as one array, and which of them to put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.safetensors_file import read_json

FILLED = 0.15
"""Of the tokens of a step, the most that may be padding..."""
FEW_TOKENS = 192
"""...unless it has fewer tokens than these: then reading the weights once more costs more than padding."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Texts filled up on the right.

    Attributes:
        tokens: ids, shape ``(texts, longest)``.
        mask: 1 for the texts' own tokens, 0 for padding, of the same shape.
    """

    tokens: NDArray[np.int64]
    mask: NDArray[np.int64]

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[int]], pad: int, multiple: int = 1, most: int | None = None
    ) -> Padded:
        """Fill texts up with the token `pad`, to the length of the longest.

        Args:
            multiple: or to the next multiple of this,
            most: unless that is more than this.
        """
        longest = max(map(len, texts))
        rounded = -(-longest // multiple) * multiple
        longest = rounded if most is None else max(longest, min(rounded, most))
        tokens = np.full((len(texts), longest), pad, np.int64)
        mask = np.zeros_like(tokens)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return cls(tokens, mask)


def pad_of(folder: Path) -> int:
    """The token that a checkpoint's ``config.json`` fills up with."""
    return int(read_json(folder / "config.json").get("pad_token_id") or 0)


def together(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which texts to run in one step: of similar lengths, at most `most`, with little padding.

    Args:
        lengths: tokens of each text.

    Returns:
        Groups of indices that hold each text once, shorter texts first.
    """
    found: list[list[int]] = []
    own = 0  # tokens of the last group without padding
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        length = lengths[index]
        if found and len(found[-1]) < most:
            area = length * (len(found[-1]) + 1)
            if area <= FEW_TOKENS or area <= (own + length) / (1 - FILLED):
                found[-1].append(index)
                own += length
                continue
        found.append([index])
        own = length
    return found
