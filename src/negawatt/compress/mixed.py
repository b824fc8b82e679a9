"""`Mixed`: more bits for the blocks that need them, by measured sensitivity, within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.gptq import Gptq
from negawatt.compress.grid import EMBEDDINGS, GROUP, SYMMETRIC, Grid
from negawatt.compress.judgement import Judgement, judged
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups
from negawatt.compress.rtn import RoundToNearest
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

_WINDOWS = 4
"""Windows on which sensitivity is measured: each is run for every block and width."""


class Mixed(Pass):
    """GPTQ with a width of its own for every block.

    A block's sensitivity to a width is what the whole model loses on text when that block alone is
    rounded so. All blocks begin at the least width; the budget then goes, widening by widening, to
    the block that gains most for the bits it takes.
    """

    name: ClassVar[str] = "mixed"
    summary: ClassVar[str] = "GPTQ with more bits for the blocks that are measured to need them"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "widths", "4+8", "bits that a block may get", choices=("4+8", "3+4", "3+4+8", "2+4"),
            search=("4+8", "3+4"),
        ),
        Parameter(
            "average", 5.0, "bits of a weight on average, at most", low=2.0, high=8.0,
            search=(4.5, 5.0, 6.0),
        ),
        GROUP,
        SYMMETRIC,
        EMBEDDINGS,
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(bits) for bits in self.values["widths"].split("+"))

    def check(self, source: Source) -> None:
        check_groups(source, self.values["group"], self.name)
        if self.values["average"] < self.widths[0]:
            raise UsageError(
                f"{self.name}: an average of {self.values['average']:g} bits is less than the least width, "
                f"{self.widths[0]}; raise average, or allow narrower widths"
            )

    def fallback(self) -> Pass:
        """Rounding in one width: the widest that the budget has for all."""
        within = max(bits for bits in self.widths if bits <= self.values["average"])
        shared = {name: self.values[name] for name in ("group", "symmetric", "embeddings")}
        return RoundToNearest(bits=within, **shared)

    def effect(self, at: Situation) -> Effect:
        least, symmetric = self.widths[0], self.values["symmetric"]
        return in_bits(at, least, symmetric, self.values["embeddings"], self.values["average"])

    def apply(self, work: Work) -> None:
        assert work.tokens is not None
        group, symmetric = self.values["group"], self.values["symmetric"]
        grids = {bits: Grid(bits, group, symmetric) for bits in self.widths}
        network = work.network().in_half_precision()
        losses, sizes = self._measured(work, network, work.tokens[:_WINDOWS], grids)
        chosen = allotted(losses, sizes, self.widths, self.values["average"])
        shared = {name: self.values[name] for name in ("group", "symmetric", "embeddings")}
        Gptq(**shared).apply_on(work, [grids[bits] for bits in chosen])

    def _measured(
        self, work: Work, network: Network, tokens: torch.Tensor, grids: Mapping[int, Grid]
    ) -> tuple[list[dict[int, float]], list[int]]:
        """For each block, what the model loses at every width, and its number of weights."""
        n_blocks = len(network.blocks)
        losses: list[dict[int, float]] = []
        origin: Judgement | None = None
        hidden: torch.Tensor | None = None
        for number in range(n_blocks):
            step = f"sensitivity {number}"
            work.progress(number, n_blocks, f"sensitivity of block {number}")
            if (facts := work.draft.kept(step)) is None:
                if hidden is None:
                    hidden = _run(network, network.embedded(tokens), 0, number)
                    origin = judged(network, tokens, _run(network, hidden.clone(), number, n_blocks))
                assert origin is not None
                found = _losses(network, number, hidden, tokens, grids, origin)
                facts = {"losses": {str(bits): loss for bits, loss in found.items()}}
                work.draft.keep(step, facts=facts)
            losses.append({int(bits): loss for bits, loss in facts["losses"].items()})
            if hidden is not None:
                hidden = _run(network, hidden, number, number + 1)
        sizes = [sum(n.inputs * n.outputs for n in network.linears(i)) for i in range(n_blocks)]
        return losses, sizes


def _run(network: Network, hidden: torch.Tensor, first: int, behind: int) -> torch.Tensor:
    """Hidden states behind the blocks from `first` up to `behind`, in place."""
    for number in range(first, behind):
        with network.loaded(number):
            network.forward(number, hidden, out=hidden)
    return hidden


def _losses(
    network: Network,
    number: int,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    grids: Mapping[int, Grid],
    origin: Judgement,
) -> dict[int, float]:
    """What the model loses when this block alone is rounded, by width; later blocks are loaded once."""
    given = {}
    with network.loaded(number):
        linears = network.linears(number)
        originals = [linear.weight.clone() for linear in linears]
        for bits, grid in grids.items():
            for linear, weight in zip(linears, originals, strict=True):
                scale, offset = grid.scaled(weight, clip=False)
                linear.put(grid.values(grid.rounded(weight, scale, offset), scale, offset))
            given[bits] = network.forward(number, hidden)
    for later in range(number + 1, len(network.blocks)):
        with network.loaded(later):
            for states in given.values():
                network.forward(later, states, out=states)
    return {
        bits: judged(network, tokens, states).loss(origin) - origin.loss(origin)
        for bits, states in given.items()
    }


def allotted(
    losses: Sequence[Mapping[int, float]], sizes: Sequence[int], widths: Sequence[int], average: float
) -> list[int]:
    """The width of every block.

    Args:
        losses: for each block, what the model loses at each width.
        sizes: for each block, its number of weights.
        widths: those allowed, rising.
        average: bits of a weight on average, at most.
    """
    chosen = [0] * len(losses)
    left = (average - widths[0]) * sum(sizes)
    while True:
        best, gain = None, 0.0
        for block, at in enumerate(chosen):
            if at + 1 == len(widths):
                continue
            cost = (widths[at + 1] - widths[at]) * sizes[block]
            won = (losses[block][widths[at]] - losses[block][widths[at + 1]]) / cost
            if cost <= left and won > gain:
                best, gain = block, won
        if best is None:
            return [widths[at] for at in chosen]
        left -= (widths[chosen[best] + 1] - widths[chosen[best]]) * sizes[best]
        chosen[best] += 1
