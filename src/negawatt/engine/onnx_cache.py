"""Keys and values between two steps in ONNX Runtime, as tensors that the caller holds and binds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.errors import require


class GrowingCache:
    """Each step takes the past and gives a present, which is the next step's past.

    Args:
        shapes: heads and their width by input, for keys and values of all layers, in the order of the
            outputs.
        presents: names of those outputs.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], presents: list[str]) -> None:
        self._shapes, self._presents = shapes, presents
        self._new_value = require("onnxruntime", extra="onnx").OrtValue.ortvalue_from_numpy
        self._values: list[Any] = []

    def empty(self, rows: int) -> None:
        """Begin a batch of so many rows."""
        self._values = [
            self._new_value(np.zeros((rows, heads, 0, width), np.float32))
            for heads, width in self._shapes.values()
        ]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Leave only these rows, in this order."""
        self._values = [self._new_value(value.numpy()[rows]) for value in self._values]

    def truncate(self, length: int) -> None:
        """Leave only the first so many tokens."""
        self._values = [
            self._new_value(np.ascontiguousarray(value.numpy()[:, :, :length])) for value in self._values
        ]

    def bind(self, binding: Any, new: int) -> None:
        """Give a step with so many new tokens its past and a place for its present."""
        for name, value in zip(self._shapes, self._values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self._presents:
            binding.bind_output(name)

    def ran(self, presents: list[Any], new: int) -> None:
        """Take what a step with so many new tokens gave."""
        self._values = presents


class CacheInPlace(GrowingCache):
    """Past and present are the same buffers, longer than what they hold, so that no step copies them."""

    SPARE = 64
    """Tokens that there is room for, at the least, when a buffer is made; a quarter of what it holds if
    that is more."""

    def empty(self, rows: int) -> None:
        super().empty(rows)
        self._length, self._room = 0, 0

    def truncate(self, length: int) -> None:
        self._length = length  # what lies behind is written over

    def bind(self, binding: Any, new: int) -> None:
        if self._length + new > self._room:
            self._make_room(self._length + new)
        for name, present, value in zip(self._shapes, self._presents, self._values, strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present, value)

    def ran(self, presents: list[Any], new: int) -> None:
        self._length += new

    def _make_room(self, wanted: int) -> None:
        self._room = wanted + max(self.SPARE, wanted // 4)
        for place, value in enumerate(self._values):
            held = value.numpy()
            rows, heads, _, width = held.shape
            larger = np.zeros((rows, heads, self._room, width), np.float32)
            larger[:, :, : self._length] = held[:, :, : self._length]
            self._values[place] = self._new_value(larger)
