"""`Awq`: inputs that carry much energy get a finer grid, by scales that the layer before takes back.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression". Which layer
can take a scale back is not looked up by name: candidates are tried on a piece of text, and one is
accepted when the block gives what it gave before. Where none can, the layer is rounded as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.draft import Quantized
from negawatt.compress.effect import Effect, Situation, rounded
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

_SAMPLE = 64
"""Tokens on which a candidate is tried."""
_SAME = 1e-3
"""Largest change of a block's output, relative to its largest value, that is rounding."""


class Awq(Pass):
    """Round on scales searched with the energy of the inputs."""

    name: ClassVar[str] = "awq"
    summary: ClassVar[str] = "round weights, finer where the inputs carry more energy"
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
        return rounded(at, self.values["bits"], self.values["symmetric"], self.values["embeddings"])

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
        folding = _Folding(network, number, hidden[:1, :_SAMPLE].clone())
        scales = []
        for moment in found:
            scale = _searched(grid, moment, self.values["points"])
            scales.append(scale if scale is not None and folding.take(moment, scale) else None)
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


class _Folding:
    """Takes scales of inputs back in what gives those inputs, where that is shown to change nothing."""

    def __init__(self, network: Network, number: int, sample: torch.Tensor) -> None:
        self._network, self._number, self._sample = network, number, sample
        self._block = network.blocks[number]
        self._touched: dict[str, Any] = {}

    def take(self, moment: Moment, scale: torch.Tensor) -> bool:
        """Multiply the layers' inputs by `scale` in their weights; False when nothing can divide by it."""
        with self._network.exact():
            expected = self._network.forward(self._number, self._sample)
            originals = [linear.weight.clone() for linear in moment.linears]
            for linear, weight in zip(moment.linears, originals, strict=True):
                linear.put(weight * scale)
            for path, divide in self._ways(moment, scale):
                parameters = dict(self._block.get_submodule(path).named_parameters(recurse=False))
                before = {name: p.data.clone() for name, p in parameters.items()}
                divide(parameters)
                given = self._network.forward(self._number, self._sample)
                if float((given - expected).abs().max()) <= _SAME * float(expected.abs().max()):
                    self._touched |= {f"{path}.{name}": p for name, p in parameters.items()}
                    return True
                for name, p in parameters.items():
                    p.data = before[name]
            for linear, weight in zip(moment.linears, originals, strict=True):
                linear.put(weight)
            return False

    def _ways(
        self, moment: Moment, scale: torch.Tensor
    ) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
        """Modules whose outputs are as many as the inputs, with ways of dividing their outputs."""
        linears = {linear.path: linear for linear in self._network.linears(self._number)}
        ours = {linear.path for linear in moment.linears}
        for path, module in self._block.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or path in ours:
                continue
            if path in linears and linears[path].outputs == len(scale):
                yield path, _dividing(scale, rows=not linears[path].transposed, shift=0.0)
            elif weight.dim() == 1 and len(weight) == len(scale):
                yield path, _dividing(scale, rows=False, shift=0.0)
                yield path, _dividing(scale, rows=False, shift=1.0)  # norms that add 1 to their weight

    def changed(self, source: Source) -> dict[str, torch.Tensor | Quantized]:
        """The parameters that took a scale, but for the matrices, which are still to be quantized."""
        import torch

        kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
        names = self._network.names(self._number)
        return {
            names[path]: p.data.to(kinds.get(source.tensors[names[path]].dtype, torch.float32))
            for path, p in self._touched.items()
            if p.dim() == 1
        }


def _dividing(scale: torch.Tensor, *, rows: bool, shift: float) -> Callable[[dict[str, Any]], None]:
    """Divides outputs in a module's parameters: rows or columns of a matrix, a norm's weight, a bias."""

    def divide(parameters: dict[str, Any]) -> None:
        for parameter in parameters.values():
            data = parameter.data
            add = shift if parameter is parameters.get("weight") else 0.0
            parameter.data = (
                (data / scale[:, None]) if data.dim() == 2 and rows else (data + add) / scale - add
            )

    return divide
