"""What the low-rank passes share: spectra, ranks under one budget for the whole model, and factors.

A weight `W` of outputs × inputs becomes ``left @ right`` of rank r, which is smaller where
r · (outputs + inputs) is less than outputs · inputs. With inputs of second moment `C`, the best such
product in the sense of the outputs is the projection of `W` on the leading eigenvectors of
``W C Wᵀ``, and what it loses is the sum of the other eigenvalues. Without text `C` is the identity
and this is the truncated singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from negawatt.compress.draft import Draft, Factored
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

RATIO = Parameter("ratio", 0.2, "share of the weights of the blocks' linear layers that is saved",
                  low=0.0, high=1.0, open=True, search=(0.1, 0.2, 0.4))  # fmt: skip

STEP = 8
"""Ranks are multiples of this, as kernels like them."""

NOTE = (
    "{n} of {of} matrices are kept as two factors, and the engines transformers and openvino run them so; a "
    "checkpoint or GGUF file multiplies them out, and is neither smaller nor faster than before"
)
"""What a reader of results must know."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What a layer loses at each rank.

    Attributes:
        energies: of its outputs along each direction, falling, shape ``(min(outputs, inputs),)``.
        outputs, inputs: its width on either side.
    """

    energies: torch.Tensor
    outputs: int
    inputs: int

    @property
    def choices(self) -> range:
        """Ranks at which two factors are smaller than the matrix."""
        return range(STEP, -(-self.outputs * self.inputs // (self.outputs + self.inputs)), STEP)


def check_ratio(source: Source, ratio: float, technique: str) -> None:
    """Refuse a ratio that not even the lowest ranks reach.

    Raises:
        UsageError: it is out of reach; the sentence says what can be saved at most.
    """
    network = Network(source)
    layers = [linear for block in range(len(network.blocks)) for linear in network.linears(block)]
    whole = sum(linear.outputs * linear.inputs for linear in layers)
    least = sum(min(STEP * (n.outputs + n.inputs), n.outputs * n.inputs) for n in layers)
    if least > (1 - ratio) * whole:
        raise UsageError(
            f"{technique}: ratio {ratio:g} is out of reach for {source.name}: at rank {STEP} everywhere "
            f"{1 - least / whole:.2f} is saved; use a smaller ratio"
        )


def spectrum(linear: Linear, second: torch.Tensor | None) -> Spectrum:
    """Of a loaded layer; without the second moment of its inputs, shape ``(in, in)``, of its weight."""
    import torch

    energies = torch.linalg.eigvalsh(_gram(linear.weight, second)[0]).flip(0).clamp_min(0)
    return Spectrum(energies.float(), linear.outputs, linear.inputs)


def factored(linear: Linear, rank: int, second: torch.Tensor | None, dtype: str) -> Factored:
    """The best product of `rank` for a loaded layer, in the type `dtype`."""
    import torch

    gram, root = _gram(linear.weight, second)
    _, vectors = torch.linalg.eigh(gram)
    leading = vectors[:, -rank:].flip(1)
    weight = linear.weight.double()
    if root is None:
        left, right = leading, leading.T @ weight
    else:
        left = weight @ (root @ leading)
        right = torch.linalg.solve_triangular(root.T, leading, upper=True).T
        size = left.norm(dim=0).clamp_min(1e-12)
        left, right = left / size, right * size[:, None]
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    return Factored(left.to(kind), right.to(kind).contiguous(), dtype, linear.transposed)


def _gram(weight: torch.Tensor, second: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The smaller of two matrices with the same eigenvalues, and the root of the moment if it took one.

    ``W C Wᵀ`` where outputs are not more than inputs, else ``Lᵀ Wᵀ W L`` with ``C = L Lᵀ``; both fp64.
    """
    import torch

    weight = weight.double()
    if second is None:
        second = torch.eye(weight.shape[1])
    second = second.double()
    if weight.shape[0] <= weight.shape[1]:
        return weight @ second @ weight.T, None
    root = torch.linalg.cholesky(second)
    tall = weight @ root
    return tall.T @ tall, root


def damped(second: torch.Tensor, damping: float) -> torch.Tensor:
    """A moment with a share of its mean diagonal added to the diagonal."""
    import torch

    mean = second.diagonal().mean().clamp_min(1e-12)
    return second + torch.eye(len(second)) * (damping * mean)


def ranks(spectra: Mapping[str, Spectrum], ratio: float) -> dict[str, int]:
    """The rank of every layer that becomes two factors; a layer that is not named stays whole.

    They minimise the sum over layers of the share of output energy that is lost, under one budget of
    weights for all: each layer takes the rank with the least sum of loss and price, and the price of
    a weight is raised until the budget holds.
    """
    budget = (1 - ratio) * sum(s.outputs * s.inputs for s in spectra.values())
    losses = {name: _losses(s) for name, s in spectra.items()}

    def chosen(price: float) -> dict[str, int]:
        found = {}
        for name, each in spectra.items():
            costs = [losses[name][r] + price * r * (each.outputs + each.inputs) for r in each.choices]
            if costs and min(costs) < price * each.outputs * each.inputs:
                found[name] = each.choices[costs.index(min(costs))]
        return found

    low, high = -40.0, 0.0  # powers of two
    for _ in range(40):
        middle = (low + high) / 2
        if _weights(spectra, chosen(2**middle)) > budget:
            low = middle
        else:
            high = middle
    return chosen(2**high)


def _losses(each: Spectrum) -> list[float]:
    """Share of the output energy lost at every rank from 0."""
    energies = each.energies.double()
    total = float(energies.sum()) or 1.0
    return [1.0, *(1.0 - energies.cumsum(0) / total).clamp_min(0).tolist()]


def _weights(spectra: Mapping[str, Spectrum], chosen: Mapping[str, int]) -> int:
    return sum(
        chosen[name] * (s.outputs + s.inputs) if name in chosen else s.outputs * s.inputs
        for name, s in spectra.items()
    )


def product(found: Factored) -> torch.Tensor:
    """The weight that two factors stand for, fp32, shape ``(out, in)``."""
    return found.left.float() @ found.right.float()


def note(draft: Draft, n_blocks: int) -> str:
    """`NOTE` on a draft whose steps are all kept."""
    facts = [draft.kept(f"block {number}") or {} for number in range(n_blocks)]
    return NOTE.format(n=sum(f["factored"] for f in facts), of=sum(f["layers"] for f in facts))
