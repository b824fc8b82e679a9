"""`SparseGpt`: weights become zero one input at a time, and those still to come make up for it.

Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".
Two things differ from the paper. Damping is a share of each input's own energy and not of the mean,
so that text is trusted less and less as it grows, until at infinity the pass is `Wanda`: calibrated on
text of another kind, little damping does worse than Wanda. And the weights that go are chosen row by
row over all inputs, as Wanda does, not within 128 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.effect import NO_GAIN, Effect, Situation
from negawatt.compress.magnitude import Magnitude
from negawatt.compress.moments import moment
from negawatt.compress.network import Linear
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.sparsity import PATTERN, RATIO, check_pattern, walk, weakest
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch

_INPUTS = 128
"""Inputs gone through before the error is carried to those far behind."""


class SparseGpt(Pass):
    """Zero weights with error compensation, calibrated on text."""

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = "weights become zero and the others make up for it; nothing gets faster"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        RATIO,
        PATTERN,
        Parameter(
            "damping", 0.1, "added to each input's energy, as a share of it; more trusts the text less",
            low=0.0, high=100.0, open=True, search=(0.01, 0.1, 1.0),
        ),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        check_pattern(source, self.values["ratio"], self.values["pattern"], self.name)

    def fallback(self) -> Pass:
        return Magnitude(ratio=self.values["ratio"], pattern=self.values["pattern"])

    def effect(self, at: Situation) -> Effect:
        return Effect(why=NO_GAIN)

    def apply(self, work: Work) -> None:
        import torch

        def prune(group: tuple[Linear, ...], rows: Iterator[torch.Tensor]) -> None:
            weight = torch.cat([linear.weight for linear in group])
            pruned = compensated(
                weight, moment(rows), damping=self.values["damping"], ratio=self.values["ratio"],
                pattern=self.values["pattern"],
            )  # fmt: skip
            sizes = [linear.outputs for linear in group]
            for linear, part in zip(group, pruned.split(sizes), strict=True):
                linear.put(part.contiguous())

        walk(work, prune)


def compensated(
    weight: torch.Tensor, second: torch.Tensor, *, damping: float, ratio: float, pattern: str
) -> torch.Tensor:
    """The weight with zeros in it whose output differs least, shape ``(out, in)``.

    Args:
        weight: fp32, shape ``(out, in)``; left as it is.
        second: second moment of the inputs, shape ``(in, in)``.
        damping: added to its diagonal, as a share of that.
        ratio, pattern: see `weakest`.
    """
    import torch

    energy = second.diagonal()
    floor = energy.mean().clamp_min(1e-12) * 1e-6  # inputs that never came
    damped = second + torch.diag(energy * damping + floor)
    inverse, factor = _inverse(damped)
    goes = weakest(weight.square() / inverse.diagonal(), ratio, pattern).T
    left = weight.T.contiguous()  # rows are inputs, so that one input is contiguous
    for begin in range(0, len(left), _INPUTS):
        end = min(begin + _INPUTS, len(left))
        near, errors = left[begin:end], torch.empty(end - begin, left.shape[1])
        inner = factor[begin:end, begin:end]
        for i in range(end - begin):
            errors[i] = near[i].where(goes[begin + i], 0.0).div_(inner[i, i])
            near[i:].addr_(inner[i, i:], errors[i], alpha=-1)
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return left.masked_fill_(goes, 0.0).T


def _inverse(damped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of a moment, and the upper Cholesky factor of that; fp64 inside, fp32 outside."""
    import torch

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped.double()))
    return inverse.float(), torch.linalg.cholesky(inverse, upper=True).float()
