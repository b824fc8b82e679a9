"""`RoundToNearest`: every weight to the nearest point of its grid. Needs no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.grid import BITS, CLIP, EMBEDDINGS, GROUP, SYMMETRIC, Grid
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups, nearest, quantize_blocks
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    from negawatt.compress.draft import Quantized
    from negawatt.compress.network import Linear


class RoundToNearest(Pass):
    """Round the linear layers of all blocks, and embedding and head, to the nearest."""

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round weights to the nearest point of a grid"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (BITS, GROUP, SYMMETRIC, CLIP, EMBEDDINGS)

    def check(self, source: Source) -> None:
        check_groups(source, self.values["group"], self.name)

    def effect(self, at: Situation) -> Effect:
        return in_bits(at, self.values["bits"], self.values["symmetric"], self.values["embeddings"])

    def apply(self, work: Work) -> None:
        grid = Grid(self.values["bits"], self.values["group"], self.values["symmetric"])

        def quantize(linear: Linear, dtype: str) -> Quantized:
            clip = self.values["clip"]
            return nearest(grid, linear.weight, clip=clip, dtype=dtype, transposed=linear.transposed)

        quantize_blocks(work, self.values["embeddings"], quantize)
