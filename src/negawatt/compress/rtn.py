"""`RoundToNearest`: every weight to the nearest point of its grid. Needs no text."""

from __future__ import annotations

from typing import ClassVar

from negawatt.compress.grid import BITS, CLIP, EMBEDDINGS, GROUP, SYMMETRIC, Grid
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups, nearest, quantize_outer
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work


class RoundToNearest(Pass):
    """Round the linear layers of all blocks, and embedding and head, to the nearest."""

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round weights to the nearest point of a grid"
    parameters: ClassVar[tuple[Parameter, ...]] = (BITS, GROUP, SYMMETRIC, CLIP, EMBEDDINGS)

    def check(self, source: Source) -> None:
        check_groups(source, self.values["group"], self.name)

    def apply(self, work: Work) -> None:
        network = work.network()
        grid = Grid(self.values["bits"], self.values["group"], self.values["symmetric"])
        n_blocks = len(network.blocks)
        for number in range(n_blocks):
            step = f"block {number}"
            work.progress(number, n_blocks + 1, step)
            if work.draft.kept(step) is not None:
                continue
            put = {}
            with network.loaded(number):
                for linear in network.linears(number):
                    put[linear.name] = nearest(
                        grid, linear.weight, clip=self.values["clip"],
                        stored=work.source.tensors[linear.name], transposed=linear.transposed,
                    )  # fmt: skip
            work.draft.keep(step, put)
        if work.draft.kept("embeddings") is None:
            work.progress(n_blocks, n_blocks + 1, "embeddings")
            work.draft.keep("embeddings", quantize_outer(network, self.values["embeddings"]))
