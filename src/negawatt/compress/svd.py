"""`Svd`: every matrix as the product of two, by its own singular values. Needs no text."""

from __future__ import annotations

from typing import ClassVar

from negawatt.compress.effect import Effect, Situation, split
from negawatt.compress.factoring import RATIO, Spectrum, check_ratio, factored, note, ranks, spectrum
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work


class Svd(Pass):
    """Truncate the singular value decomposition of the linear layers of all blocks."""

    name: ClassVar[str] = "svd"
    summary: ClassVar[str] = "matrices as products of two, by their own singular values"
    factors: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (RATIO,)

    def check(self, source: Source) -> None:
        check_ratio(source, self.values["ratio"], self.name)

    def effect(self, at: Situation) -> Effect:
        return split(at, self.values["ratio"])

    def apply(self, work: Work) -> None:
        network, draft = work.network(), work.draft
        n_blocks = len(network.blocks)
        spectra: dict[str, Spectrum] = {}
        todo = [n for n in range(n_blocks) if draft.kept(f"block {n}") is None]
        for number in range(n_blocks if todo else 0):
            work.progress(number, 2 * n_blocks, f"spectra of block {number}")
            with network.loaded(number):
                spectra |= {each.name: spectrum(each, None) for each in network.linears(number)}
        chosen = ranks(spectra, self.values["ratio"])
        for number in todo:
            work.progress(n_blocks + number, 2 * n_blocks, f"block {number}")
            with network.loaded(number):
                put = {
                    each.name: factored(each, chosen[each.name], None, work.source.tensors[each.name].dtype)
                    for each in network.linears(number)
                    if each.name in chosen
                }
            draft.keep(
                f"block {number}", put, facts={"layers": len(network.linears(number)), "factored": len(put)}
            )
        draft.notes.append(note(draft, n_blocks))
