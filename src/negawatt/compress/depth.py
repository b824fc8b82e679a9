"""`Depth`: drop the blocks that change their input least.

A block's influence is 1 minus the cosine between what goes in and what comes out, over all tokens (Men et
al. 2024, ShortGPT). A run of neighbouring blocks is judged in the same way from its first input to its last
output (Gromov et al. 2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.draft import Draft
from negawatt.compress.effect import Effect, Situation
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


class Depth(Pass):
    """Drop a share of the blocks."""

    name: ClassVar[str] = "depth"
    summary: ClassVar[str] = "drop the layers that change their input least"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("ratio", 0.2, "share of the layers to drop", low=0.0, high=1.0, open=True,
                  search=(0.1, 0.2, 0.3)),
        Parameter("order", "greedy", "greedy: one by one, scored anew after each; contiguous: the best run "
                  "of neighbours", choices=("greedy", "contiguous"), search=("greedy", "contiguous")),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        network = Network(source)
        network.refuse_encoder_decoder(self.name, "whose layers are not compared with each other")
        self._count(len(network.blocks))

    def _count(self, n_blocks: int) -> int:
        """How many blocks to drop.

        Raises:
            UsageError: none, or all.
        """
        count: int = round(self.values["ratio"] * n_blocks)
        if not 0 < count < n_blocks:
            raise UsageError(
                f"depth: a ratio of {self.values['ratio']:g} drops {count} of {n_blocks} layers; give one "
                f"from {1 / n_blocks:.2g} to {(n_blocks - 1) / n_blocks:.2g}"
            )
        return count

    def effect(self, at: Situation) -> Effect:
        n_layers = at.shape.n_layers
        left = 1 - self._count(n_layers) / n_layers
        work = at.work_factor(left)
        return Effect(at.bytes_factor(left), work, work, left, left, f"{left:.0%} of the layers are left")

    def apply(self, work: Work) -> None:
        network = work.network()
        n_blocks = len(network.blocks)
        count = self._count(n_blocks)
        if self.values["order"] == "contiguous":
            scores = _scored(work, network, list(range(n_blocks)), "round 0", span=count)
            start = min(range(len(scores)), key=scores.__getitem__)
            dropped = list(range(start, start + count))
        else:
            dropped, left = [], list(range(n_blocks))
            for number in range(count):
                scores = _scored(work, network, left, f"round {number}")
                dropped.append(left.pop(min(range(len(left)), key=scores.__getitem__)))
        work.draft.outcome = {"layers_before": n_blocks, "layers": n_blocks - count, "dropped": dropped}
        without(work.draft, network, dropped)


def _scored(work: Work, network: Network, blocks: list[int], name: str, span: int = 1) -> list[float]:
    """Influence of every run of `span` of the blocks, run one after the other; a step for each block."""
    assert work.tokens is not None
    draft = work.draft
    if (known := draft.kept(f"{name} scores")) is not None:
        return list(known["scores"])
    todo = [place for place in range(len(blocks)) if draft.kept(f"{name} block {place}") is None]
    if todo and todo[0] == 0:
        states = [network.embedded(work.tokens)]
    else:
        carried = dict(draft.carried)
        states = [carried[key] for key in sorted(carried)]
    for place in todo:
        work.progress(place, len(blocks), f"{name}: scoring layer {blocks[place]}")
        with network.loaded(blocks[place]):
            states = [*states[-span:], network.forward(blocks[place], states[-1])]
        facts = {"influence": _influence(states[0], states[-1])} if place >= span - 1 else {}
        draft.keep(f"{name} block {place}", carry={f"{i:03d}": s for i, s in enumerate(states)}, facts=facts)
    places = range(span - 1, len(blocks))
    scores = [float((draft.kept(f"{name} block {place}") or {})["influence"]) for place in places]
    draft.keep(f"{name} scores", facts={"scores": scores})
    return scores


def _influence(before: torch.Tensor, after: torch.Tensor) -> float:
    import torch

    cosines = [torch.nn.functional.cosine_similarity(b, a, dim=-1).double().mean()
               for b, a in zip(before, after, strict=True)]  # fmt: skip
    return 1 - float(torch.stack(cosines).mean())


def without(draft: Draft, network: Network, dropped: list[int]) -> None:
    """Take blocks out of a draft: its tensors, its layer count, and every list with an entry a layer."""
    n_blocks = len(network.blocks)
    left = [i for i in range(n_blocks) if i not in dropped]
    places = {old: new for new, old in enumerate(left)}
    prefixes = {i: _prefix(network, i) for i in range(n_blocks)}
    tensors: dict[str, Any] = {}
    for name, tensor in draft.tensors.items():
        number = next((i for i, prefix in prefixes.items() if name.startswith(prefix)), None)
        if number is None:
            tensors[name] = tensor
        elif number in places:
            tensors[prefixes[places[number]] + name.removeprefix(prefixes[number])] = tensor
    draft.tensors.clear()
    draft.tensors.update(tensors)
    for key, value in draft.config.items():
        if key in LAYER_COUNTS and value == n_blocks:
            draft.config[key] = len(left)
        elif isinstance(value, list) and len(value) == n_blocks and not key.endswith("_token_id"):
            draft.config[key] = [value[i] for i in left]


def _prefix(network: Network, block: int) -> str:
    """What the checkpoint's names of a block begin with, such as ``model.layers.3.``."""
    path, name = next(iter(network.names(block).items()))
    return name.removesuffix(path)
