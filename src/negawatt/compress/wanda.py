"""`Wanda`: the weights that matter least to a layer's output become zero; the others stay as they are.

Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models": a weight matters
by its size times the norm of its input, compared with the others of its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.effect import NO_GAIN, Effect, Situation
from negawatt.compress.magnitude import Magnitude
from negawatt.compress.network import Linear
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.sparsity import PATTERN, RATIO, check_pattern, walk, weakest
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch


class Wanda(Pass):
    """Zero the weights with the smallest ``|w| · ‖x‖`` of every row."""

    name: ClassVar[str] = "wanda"
    summary: ClassVar[str] = "weights that matter little with these inputs become zero; nothing gets faster"
    parameters: ClassVar[tuple[Parameter, ...]] = (RATIO, PATTERN)
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        check_pattern(source, self.values["ratio"], self.values["pattern"], self.name)

    def fallback(self) -> Pass:
        return Magnitude(**self.values)

    def effect(self, at: Situation) -> Effect:
        return Effect(why=NO_GAIN)

    def apply(self, work: Work) -> None:
        import torch

        def prune(group: tuple[Linear, ...], rows: Iterator[torch.Tensor]) -> None:
            norm = torch.stack([part.square().sum(dim=0) for part in rows]).sum(dim=0).sqrt()
            for linear in group:
                goes = weakest(linear.weight.abs() * norm, self.values["ratio"], self.values["pattern"])
                linear.put(linear.weight.masked_fill(goes, 0.0))

        walk(work, prune)
