"""`Gptq`: weights are rounded one input at a time, and those still to come make up for the error.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", with the inputs in order of their energy, scales fixed beforehand by a search weighted
with it, and the inputs of every block as the quantized blocks before it give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.draft import Quantized
from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.grid import BITS, CLIP, EMBEDDINGS, GROUP, SYMMETRIC, Grid
from negawatt.compress.moments import Moment, moments
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups, finish_outer
from negawatt.compress.rtn import RoundToNearest
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch

_COLUMNS = 128
"""Inputs rounded before the error is carried to those far behind."""


class Gptq(Pass):
    """Round with error compensation, calibrated on text."""

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "round weights, and let those still to come make up for the error"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        BITS,
        GROUP,
        SYMMETRIC,
        CLIP,
        EMBEDDINGS,
        Parameter(
            "damping", 0.05, "share of the mean energy added to each input's; more trusts the text less",
            low=0.0, high=1.0, open=True, search=(0.01, 0.05, 0.2),
        ),
        Parameter(
            "order", "energy", "inputs by falling energy, or as they are", choices=("energy", "stored"),
        ),
        Parameter("sequential", True, "blocks see what the quantized blocks before them give"),
        Parameter(
            "align", 0.5, "how far layers make up for the drift of their inputs from the original's",
            low=0.0, high=1.0, search=(0.5, 0.0),
        ),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        check_groups(source, self.values["group"], self.name)

    def fallback(self) -> Pass:
        shared = {p.name: self.values[p.name] for p in RoundToNearest.parameters}
        return RoundToNearest(**shared)

    def effect(self, at: Situation) -> Effect:
        return in_bits(at, self.values["bits"], self.values["symmetric"], self.values["embeddings"])

    def apply(self, work: Work) -> None:
        self.apply_on(work, [Grid(self.values["bits"], self.values["group"], self.values["symmetric"])])

    def apply_on(self, work: Work, grids: Sequence[Grid]) -> None:
        """As `apply`, with a grid for every block, or one for all."""
        assert work.tokens is not None
        network = work.network().in_half_precision()
        n_blocks = len(network.blocks)
        grids = list(grids) * (n_blocks if len(grids) == 1 else 1)
        streams: dict[str, torch.Tensor] = dict(work.draft.carried)
        for number in range(n_blocks):
            step = f"block {number}"
            work.progress(number, n_blocks + 1, step)
            if work.draft.kept(step) is not None:
                continue
            if not streams:
                streams["hidden"] = network.embedded(work.tokens)
                if self.values["align"] and self.values["sequential"]:
                    streams["original"] = streams["hidden"].clone()
            with network.loaded(number):
                put = self._block(network, number, streams, grids[number], work.source)
            work.draft.keep(step, put, carry=streams if number < n_blocks - 1 else {})
        finish_outer(work, network, self.values["embeddings"])

    def _block(
        self, network: Network, number: int, streams: dict[str, torch.Tensor], grid: Grid, source: Source
    ) -> dict[str, Quantized]:
        """Quantize the layers of a loaded block, and move the hidden states behind it."""
        put = {}
        hidden = streams["hidden"]
        found = moments(network, number, hidden, network.linears(number), streams.get("original"))
        if not self.values["sequential"]:
            network.forward(number, hidden, out=hidden)
        for moment in found:
            for linear, quantized, values in self._layers(moment, grid, source):
                put[linear.name] = quantized
                linear.put(values)
        if self.values["sequential"] and number < len(network.blocks) - 1:
            network.forward(number, hidden, out=hidden)
        return put

    def _layers(
        self, moment: Moment, grid: Grid, source: Source
    ) -> list[tuple[Linear, Quantized, torch.Tensor]]:
        """Layers with common inputs are rounded together: their Hessian is the same."""
        import torch

        weight = torch.cat([linear.weight for linear in moment.linears]).float()
        if moment.drift is not None:
            weight = aligned(
                weight, moment.matrix, moment.drift, self.values["align"], self.values["damping"]
            )
        energy = moment.matrix.diagonal()
        importance = energy + self.values["damping"] * energy.mean() + 1e-12
        scale, offset = grid.scaled(weight, clip=self.values["clip"], importance=importance)
        codes = compensated(
            grid, weight, scale, offset, moment.matrix,
            damping=self.values["damping"], by_energy=self.values["order"] == "energy",
        )  # fmt: skip
        found, row = [], 0
        for linear in moment.linears:
            part = slice(row, row + linear.outputs)
            row += linear.outputs
            shift = None if offset is None else offset[part]
            quantized = grid.quantized(
                codes[part], scale[part], shift,
                dtype=source.tensors[linear.name].dtype, transposed=linear.transposed,
            )  # fmt: skip
            found.append((linear, quantized, grid.values(codes[part], scale[part], shift)))
        return found


def aligned(
    weight: torch.Tensor, moment: torch.Tensor, drift: torch.Tensor, share: float, damping: float
) -> torch.Tensor:
    """The weight that gives, from drifted inputs, what the original gives from its own.

    Least squares of ``W y`` on x, damped towards W (Li et al. 2025, "GPTAQ: Efficient Finetuning-Free
    Quantization for Asymmetric Calibration"), of which `share` is taken.
    """
    import torch

    damped = moment + torch.eye(len(moment)) * (damping * moment.diagonal().mean().clamp_min(1e-12))
    return weight + share * torch.linalg.solve(damped, (weight @ drift).T).T


def compensated(
    grid: Grid,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    moment: torch.Tensor,
    *,
    damping: float,
    by_energy: bool,
) -> torch.Tensor:
    """The codes that GPTQ chooses, uint8, shape ``(out, in)``.

    Args:
        grid: with `scale` and `offset`, where a weight may go.
        weight: fp32, shape ``(out, in)``; left as it is.
        moment: second moment of the inputs, shape ``(in, in)``.
        damping: added to its diagonal, as a share of the mean of that.
        by_energy: begin with the inputs of the highest energy.
    """
    import torch

    energy = moment.diagonal()
    order = torch.argsort(energy, descending=True, stable=True) if by_energy else torch.arange(len(energy))
    factor = _inverse_factor(moment[order][:, order], damping)
    group_of = (order // grid.group).tolist()
    left = weight.T[order].contiguous()  # rows are inputs, so that one input is contiguous
    steps = scale.T.contiguous()
    shifts = (steps * -(2.0 ** (grid.bits - 1))) if offset is None else offset.T.contiguous()
    codes = torch.empty(left.shape, dtype=torch.uint8)
    for begin in range(0, len(left), _COLUMNS):
        end = min(begin + _COLUMNS, len(left))
        near, errors = left[begin:end], torch.empty(end - begin, left.shape[1])
        inner = factor[begin:end, begin:end]
        for i in range(end - begin):
            step, shift = steps[group_of[begin + i]], shifts[group_of[begin + i]]
            code = (near[i] - shift).div_(step).round_().clamp_(0, grid.top)
            codes[begin + i] = code.to(torch.uint8)
            errors[i] = (near[i] - code.mul_(step).add_(shift)).div_(inner[i, i])
            near[i + 1 :].addr_(inner[i, i + 1 :], errors[i], alpha=-1)
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous()


def _inverse_factor(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped moment, in fp64 where fp32 does not do."""
    import torch

    mean = moment.diagonal().mean().clamp_min(1e-12)
    damped = moment + torch.eye(len(moment)) * (damping * mean)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        lower = torch.linalg.cholesky(damped.double())
    inverse = torch.cholesky_inverse(lower)
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if failed:
        upper = torch.linalg.cholesky(torch.cholesky_inverse(lower.double()), upper=True)
    return upper.float()
