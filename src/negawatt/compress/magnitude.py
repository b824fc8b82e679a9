"""`Magnitude`: the smallest weights of every layer become zero. Needs no text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.effect import NO_GAIN, Effect, Situation
from negawatt.compress.network import Linear
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.sparsity import PATTERN, RATIO, check_pattern, walk, weakest
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch


class Magnitude(Pass):
    """Zero the smallest weights of every linear layer of the blocks (Han et al. 2015)."""

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "the smallest weights of every layer become zero; nothing gets faster"
    parameters: ClassVar[tuple[Parameter, ...]] = (RATIO, PATTERN)

    def check(self, source: Source) -> None:
        check_pattern(source, self.values["ratio"], self.values["pattern"], self.name)

    def effect(self, at: Situation) -> Effect:
        return Effect(why=NO_GAIN)

    def apply(self, work: Work) -> None:
        ratio, pattern = self.values["ratio"], self.values["pattern"]

        def prune(group: tuple[Linear, ...], rows: Iterator[torch.Tensor]) -> None:
            (linear,) = group
            weight = linear.weight
            size = weight.abs().reshape(1, -1) if pattern == "free" else weight.abs()
            goes = weakest(size, ratio, pattern).reshape(weight.shape)
            linear.put(weight.masked_fill(goes, 0.0))

        walk(work, prune)
