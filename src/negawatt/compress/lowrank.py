"""`LowRank`: every matrix as the product of two, by what its outputs are with the inputs it gets.

Wang et al. 2025, "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
Compression", with ranks that share one budget, and inputs as the factored layers before give them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from negawatt.compress.draft import Factored
from negawatt.compress.effect import Effect, Situation, split
from negawatt.compress.factoring import (
    RATIO,
    Spectrum,
    check_ratio,
    damped,
    factored,
    note,
    product,
    ranks,
    spectrum,
)
from negawatt.compress.inputs import groups, inputs
from negawatt.compress.moments import moment, moments
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.svd import Svd
from negawatt.compress.technique import Pass, Work

if TYPE_CHECKING:
    import torch


class LowRank(Pass):
    """Truncate the linear layers of all blocks where their outputs lose least."""

    name: ClassVar[str] = "lowrank"
    summary: ClassVar[str] = "matrices as products of two, where their outputs lose least"
    factors: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        RATIO,
        Parameter(
            "damping", 0.05, "added to the inputs' second moment, as a share of its mean diagonal",
            low=0.0, high=10.0, open=True, search=(0.01, 0.05, 0.5),
        ),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        check_ratio(source, self.values["ratio"], self.name)

    def fallback(self) -> Pass:
        return Svd(ratio=self.values["ratio"])

    def effect(self, at: Situation) -> Effect:
        return split(at, self.values["ratio"])

    def apply(self, work: Work) -> None:
        assert work.tokens is not None
        network, draft = work.network().in_half_precision(), work.draft
        n_blocks = len(network.blocks)
        if draft.kept("ranks") is None:
            spectra = self._spectra(work, network)
            draft.keep("ranks", carry={}, facts={"ranks": ranks(spectra, self.values["ratio"])})
        chosen = (draft.kept("ranks") or {})["ranks"]
        hidden: torch.Tensor | None = draft.carried.get("hidden")
        for number in range(n_blocks):
            step = f"block {number}"
            work.progress(n_blocks + number, 2 * n_blocks, step)
            if draft.kept(step) is not None:
                continue
            hidden = network.embedded(work.tokens) if hidden is None else hidden
            with network.loaded(number):
                put = self._block(work, network, number, hidden, chosen)
                if number < n_blocks - 1:
                    network.forward(number, hidden, out=hidden)
            facts = {"layers": len(network.linears(number)), "factored": len(put)}
            draft.keep(step, put, carry={"hidden": hidden} if number < n_blocks - 1 else {}, facts=facts)
        draft.notes.append(note(draft, n_blocks))

    def _spectra(self, work: Work, network: Network) -> dict[str, Spectrum]:
        """What every layer of the untouched model would lose, block by block."""
        assert work.tokens is not None
        draft, n_blocks = work.draft, len(network.blocks)
        carried = dict(draft.carried)
        hidden = carried.pop("hidden", None)
        for number in range(n_blocks):
            step = f"spectra of block {number}"
            work.progress(number, 2 * n_blocks, step)
            if draft.kept(step) is not None:
                continue
            hidden = network.embedded(work.tokens) if hidden is None else hidden
            with network.loaded(number):
                for each in moments(network, number, hidden, network.linears(number)):
                    second = damped(each.matrix, self.values["damping"])
                    carried |= {n.name: spectrum(n, second).energies for n in each.linears}
                network.forward(number, hidden, out=hidden)
            draft.keep(step, carry={**carried, "hidden": hidden})
        layers = [linear for number in range(n_blocks) for linear in network.linears(number)]
        return {n.name: Spectrum(carried[n.name], n.outputs, n.inputs) for n in layers if n.name in carried}

    def _block(
        self, work: Work, network: Network, number: int, hidden: torch.Tensor, chosen: dict[str, int]
    ) -> dict[str, Factored]:
        """Factor the layers of a loaded block, and leave the products in its modules."""
        put = {}
        for group in groups(network, number, hidden, network.linears(number)):
            layers = [linear for linear in group if linear.name in chosen]
            if not layers:
                continue
            second = damped(moment(inputs(network, number, hidden, group[0])), self.values["damping"])
            for linear in layers:
                dtype = work.source.tensors[linear.name].dtype
                put[linear.name] = factored(linear, chosen[linear.name], second, dtype)
                linear.put(product(put[linear.name]))
        return put
