"""`Grid`: the integers a weight may become, and rounding to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from negawatt.compress.draft import Quantized
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

GROUPS = (16, 32, 64, 128, 256)

BITS = Parameter("bits", 4, "bits of a weight", choices=(2, 3, 4, 8), search=(4, 8, 3))
GROUP = Parameter(
    "group", 32, "inputs that share a scale; must divide every layer's inputs",
    choices=GROUPS, search=(32, 64),
)  # fmt: skip
SYMMETRIC = Parameter("symmetric", True, "no offset beside the scale", search=(True, False))
EMBEDDINGS = Parameter(
    "embeddings", 8, "bits of the embedding and the head; 0 leaves them as they are", choices=(0, 4, 8),
    search=(8, 4),
)  # fmt: skip
CLIP = Parameter("clip", True, "search the scale with the least squared error", search=(True,))


@dataclass(frozen=True, slots=True)
class Grid:
    """Unsigned codes of `bits` bits; `group` neighbouring inputs share a scale (and an offset).

    A weight is ``scale × code + offset``; on a symmetric grid the offset is minus half the codes.
    Scales and offsets are rounded to fp16, as they are stored, before anything is rounded to them.
    """

    bits: int
    group: int
    symmetric: bool

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def scaled(
        self, weight: torch.Tensor, *, clip: bool, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales and offsets for a weight, fp32 values that fp16 holds, shape ``(out, in / group)``.

        Args:
            weight: fp32, shape ``(out, in)``.
            clip: try narrower and one-sided ranges, and take the one with the least (weighted) squared
                error.
            importance: weight of each input in that error, shape ``(in,)``; equal if absent.
        """
        import torch

        groups = weight.reshape(weight.shape[0], -1, self.group)
        if importance is not None:
            importance = importance.reshape(1, -1, self.group)
        best: tuple[torch.Tensor, torch.Tensor | None] | None = None
        error = torch.empty(0)
        for scale, offset in self._candidates(groups, clip):
            if best is None and not clip:
                return scale, offset
            gone = self._squared_error(groups, scale, offset, importance)
            if best is None:
                best, error = (scale, offset), gone
                continue
            better = gone < error
            error = torch.where(better, gone, error)
            shift = None if offset is None or best[1] is None else torch.where(better, offset, best[1])
            best = (torch.where(better, scale, best[0]), shift)
        assert best is not None
        return best

    def _candidates(
        self, groups: torch.Tensor, clip: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        import torch

        low, high = groups.amin(-1), groups.amax(-1)
        if self.symmetric:
            half = 2 ** (self.bits - 1)
            largest = torch.where(high > -low, high, low)  # the end with the larger size, with its sign
            plain = torch.maximum(high, -low) / (half - 0.5)
            yield _half(plain.clamp_min(1e-8)), None
            if clip:
                # The negative side has one code more: let the larger end use it, with a negative scale.
                for share in _SHARES:
                    yield _half(_away_from_zero(-largest * share / half)), None
                    yield _half(_away_from_zero(largest * share / (half - 1))), None
            return
        low, high = low.clamp_max(0), high.clamp_min(0)
        for share in (1.0, *_SHARES) if clip else (1.0,):
            scale = _half(((high - low) * share / self.top).clamp_min(1e-8))
            yield scale, _half(low * share)

    def _squared_error(
        self,
        groups: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None,
        importance: torch.Tensor | None,
    ) -> torch.Tensor:
        shift = self._shift(scale, offset)[..., None]
        codes = ((groups - shift) / scale[..., None]).round_().clamp_(0, self.top)
        gone = codes.mul_(scale[..., None]).add_(shift).sub_(groups).square_()
        error: torch.Tensor = (gone if importance is None else gone * importance).sum(-1)
        return error

    def _shift(self, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        return scale * -(2.0 ** (self.bits - 1)) if offset is None else offset

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        """The nearest codes, uint8, shape ``(out, in)``."""
        import torch

        groups = weight.reshape(weight.shape[0], -1, self.group)
        codes = ((groups - self._shift(scale, offset)[..., None]) / scale[..., None]).round_()
        return codes.clamp_(0, self.top).to(torch.uint8).reshape(weight.shape)

    def values(self, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        """The weights that codes stand for, fp32, shape ``(out, in)``."""
        groups = codes.float().reshape(codes.shape[0], -1, self.group)
        return (groups * scale[..., None] + self._shift(scale, offset)[..., None]).reshape(codes.shape)

    def quantized(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None,
        *,
        dtype: str,
        transposed: bool = False,
    ) -> Quantized:
        """The matrix as it is kept."""
        offsets = None if offset is None else offset.half()
        return Quantized(codes, scale.half(), offsets, self.bits, self.group, dtype, transposed)


_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)


def _half(values: torch.Tensor) -> torch.Tensor:
    """Rounded to what fp16 holds."""
    return values.half().float()


def _away_from_zero(values: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(values.abs() < 1e-7, 1e-7, values)


def refuse_indivisible(source: Source, widths: dict[str, int], group: int, name: str) -> None:
    """Raise when a group does not divide the inputs of a layer.

    Raises:
        UsageError: with the groups that would.
    """
    for layer, inputs in widths.items():
        if inputs % group:
            fitting = [str(g) for g in GROUPS if all(w % g == 0 for w in widths.values())]
            use = f"use {' or '.join(fitting)}" if fitting else "none of the group sizes here does"
            raise UsageError(
                f"{name}: group {group} does not divide the {inputs} inputs of {layer} in {source.name}; "
                f"{use}"
            )
