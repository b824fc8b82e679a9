"""`Hqq`: round, and move each group's offset to where few weights are far off. Needs no text.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": minimise the p-norm
(p < 1) of what rounding changes by turns, over which weights count as outliers and over the offset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.grid import BITS, EMBEDDINGS, GROUP, Grid
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups, quantize_blocks
from negawatt.compress.rtn import RoundToNearest
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch

    from negawatt.compress.draft import Quantized
    from negawatt.compress.network import Linear

_BETA, _GROWTH = 10.0, 1.01


class Hqq(Pass):
    """Round on an asymmetric grid whose offsets are found by half-quadratic splitting."""

    name: ClassVar[str] = "hqq"
    summary: ClassVar[str] = "round weights, with offsets that keep most of them close"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        BITS,
        GROUP,
        EMBEDDINGS,
        Parameter("norm", 0.7, "p of the norm; less forgives outliers more", low=0.0, high=1.0, open=True,
                  search=(0.5, 0.7)),
        Parameter("rounds", 20, "turns at most", low=1, high=1000),
    )  # fmt: skip

    def check(self, source: Source) -> None:
        check_groups(source, self.values["group"], self.name)

    def fallback(self) -> Pass:
        shared = {name: self.values[name] for name in ("bits", "group", "embeddings")}
        return RoundToNearest(symmetric=False, **shared)

    def effect(self, at: Situation) -> Effect:
        return in_bits(at, self.values["bits"], False, self.values["embeddings"])

    def apply(self, work: Work) -> None:
        grid = Grid(self.values["bits"], self.values["group"], symmetric=False)

        def quantize(linear: Linear, dtype: str) -> Quantized:
            scale, offset = settled(grid, linear.weight, self.values["norm"], self.values["rounds"])
            codes = grid.rounded(linear.weight, scale, offset)
            return grid.quantized(codes, scale, offset, dtype=dtype, transposed=linear.transposed)

        quantize_blocks(work, self.values["embeddings"], quantize)


def settled(grid: Grid, weight: torch.Tensor, norm: float, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets, fp32 values that fp16 holds, shape ``(out, in / group)``.

    Distances are taken in steps of the grid, so that the result does not depend on the weights' unit.

    Args:
        grid: asymmetric.
        weight: fp32, shape ``(out, in)``.
        norm: p of the norm.
        rounds: turns at most; a group keeps the offset at which its norm was least.
    """
    import torch

    scale, offset = grid.scaled(weight, clip=False)
    assert offset is not None
    groups = weight.reshape(weight.shape[0], -1, grid.group)
    step, best, beta = scale[..., None], offset, _BETA
    least = torch.full_like(offset, torch.inf)
    for _ in range(rounds):
        codes = ((groups - offset[..., None]) / step).round_().clamp_(0, grid.top)
        gone = (groups - offset[..., None]) / step - codes
        error = gone.abs().pow(norm).sum(-1)
        best = torch.where(error < least, offset, best)
        least = torch.minimum(least, error)
        outliers = gone.sign() * (gone.abs() - gone.abs().clamp_min(1e-6).pow(norm - 1) / beta).clamp_min_(0)
        offset = (groups - step * (codes + outliers)).mean(-1).half().float()
        beta *= _GROWTH
    return scale, best
