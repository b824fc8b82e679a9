"""`Awq`: inputs that carry much energy get a finer grid, by scales that the layer before takes back.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression". Where no layer
can take a scale back (see `negawatt.compress.folding`), a layer is rounded as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.draft import Quantized
from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.folding import Folding
from negawatt.compress.grid import BITS, EMBEDDINGS, GROUP, SYMMETRIC, Grid
from negawatt.compress.moments import Moment, moments
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups, finish_outer
from negawatt.compress.rtn import RoundToNearest
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch


class Awq(Pass):
    """Round on scales searched with the energy of the inputs."""

    name: ClassVar[str] = "awq"
    summary: ClassVar[str] = "round weights, finer where the inputs carry more energy"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        BITS,
        GROUP,
        SYMMETRIC,
        EMBEDDINGS,
        Parameter("points", 10, "powers of the energy that are tried", low=1, high=100, search=(10, 20)),
    )
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        check_groups(source, self.values["group"], self.name)

    def fallback(self) -> Pass:
        shared = {name: self.values[name] for name in ("bits", "group", "symmetric", "embeddings")}
        return RoundToNearest(**shared)

    def effect(self, at: Situation) -> Effect:
        return in_bits(at, self.values["bits"], self.values["symmetric"], self.values["embeddings"])

    def apply(self, work: Work) -> None:
        assert work.tokens is not None
        network = work.network().in_half_precision()
        n_blocks = len(network.blocks)
        hidden: torch.Tensor | None = work.draft.carried.get("hidden")
        for number in range(n_blocks):
            step = f"block {number}"
            work.progress(number, n_blocks + 1, step)
            if work.draft.kept(step) is not None:
                continue
            hidden = network.embedded(work.tokens) if hidden is None else hidden
            last = number == n_blocks - 1
            with network.loaded(number):
                put = self._block(network, number, hidden, work.source)
                if not last:
                    network.forward(number, hidden, out=hidden)
            work.draft.keep(step, put, carry={} if last else {"hidden": hidden})
        finish_outer(work, network, self.values["embeddings"])

    def _block(
        self, network: Network, number: int, hidden: torch.Tensor, source: Source
    ) -> dict[str, torch.Tensor | Quantized]:
        """Scale and quantize the layers of a loaded block; its modules are left quantized."""
        grid = Grid(self.values["bits"], self.values["group"], self.values["symmetric"])
        found = moments(network, number, hidden, network.linears(number))
        folding = Folding(network, number, hidden)
        scales = []
        for moment in found:
            scale = _searched(grid, moment, self.values["points"])
            scales.append(scale if scale is not None and folding.take(moment.linears, scale) else None)
        put: dict[str, torch.Tensor | Quantized] = folding.changed(source)
        for moment, scale in zip(found, scales, strict=True):
            energy = moment.matrix.diagonal()
            energy = energy if scale is None else energy / scale.square()
            for linear in moment.linears:
                weight = linear.weight.float()
                step, offset = grid.scaled(weight, clip=True, importance=energy + 1e-6 * energy.mean())
                codes = grid.rounded(weight, step, offset)
                dtype = source.tensors[linear.name].dtype
                put[linear.name] = grid.quantized(
                    codes, step, offset, dtype=dtype, transposed=linear.transposed
                )
                linear.put(grid.values(codes, step, offset))
        return put


def _searched(grid: Grid, moment: Moment, points: int) -> torch.Tensor | None:
    """The scale of each input with the least error of the outputs, shape ``(inputs,)``; None for no scale."""
    import torch

    weight = torch.cat([linear.weight for linear in moment.linears]).float()
    spread = moment.matrix.diagonal().sqrt().clamp_min(1e-6)
    least, best = torch.inf, None
    for point in range(points):
        scale = spread.pow(point / points)
        scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-3, 1e3)
        wide = weight * scale
        step, offset = grid.scaled(wide, clip=False)
        gone = grid.values(grid.rounded(wide, step, offset), step, offset).div_(scale).sub_(weight)
        error = float(((gone @ moment.matrix) * gone).sum())
        if error < least:
            least, best = error, scale if point else None
    return best
