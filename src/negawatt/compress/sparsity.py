"""What all sparsifying passes share: which weights go, and the walk through the blocks.

Zeros are a way to judge a model's slack, and a start for formats that skip them. By themselves they
save nothing: see `NOTE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from negawatt.compress.inputs import groups, inputs
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.technique import Work
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

RATIO = Parameter("ratio", 0.5, "share of the weights of the blocks' linear layers that becomes zero",
                  low=0.0, high=1.0, open=True, search=(0.3, 0.5, 0.6))  # fmt: skip
PATTERN = Parameter("pattern", "free", "zeros anywhere, or 2 among every 4 neighbouring inputs",
                    choices=("free", "2:4"), search=("free", "2:4"))  # fmt: skip

NOTE = (
    "{share:.1%} of the weights of the blocks' linear layers are zero; no engine here skips zeros, so the "
    "model is neither smaller nor faster than before"
)
"""What a reader of results must know; `benchmarks/compress_sparsity.py --speed` shows it."""

Prune = Callable[[tuple[Linear, ...], Iterator["torch.Tensor"]], None]
"""Sets the weights of layers with common inputs, given those inputs a few windows at a time; a pass
without text gets one layer after the other, and no inputs."""


def check_pattern(source: Source, ratio: float, pattern: str, technique: str) -> None:
    """Refuse what the pattern 2:4 cannot do.

    Raises:
        UsageError: another ratio than a half, or inputs that 4 does not divide.
    """
    if pattern != "2:4":
        return
    if ratio != 0.5:
        raise UsageError(f"{technique}: pattern 2:4 makes half of the weights zero, so ratio must be 0.5, "
                         f"not {ratio:g}")  # fmt: skip
    for linear in Network(source).linears(0):
        if linear.inputs % 4:
            raise UsageError(
                f"{technique}: pattern 2:4 needs inputs that 4 divides, and {linear.path} of {source.name} "
                f"has {linear.inputs}; use pattern=free"
            )


def weakest(score: torch.Tensor, ratio: float, pattern: str) -> torch.Tensor:
    """Which weights of every row score lowest: true for those to become zero.

    Exactly the same number in every row, rounded down but at least one weight stays; among equals the
    first goes.

    Args:
        score: shape ``(rows, inputs)``.
        ratio: share of each row; a pattern of 2:4 knows its own.
        pattern: ``free`` or ``2:4``.
    """
    import torch

    rows, width = score.shape
    if pattern == "2:4":
        score, n_zero = score.reshape(-1, 4), 2
    else:
        n_zero = int(width * ratio)
    lowest = score.argsort(dim=1, stable=True)[:, :n_zero]
    mask = torch.zeros(score.shape, dtype=torch.bool)
    mask.scatter_(1, lowest, True)
    return mask.reshape(rows, width)


def walk(work: Work, prune: Prune) -> None:
    """Prune block after block; each layer's inputs are what all pruned layers before it give."""
    network = work.network().in_half_precision()
    n_blocks, hidden = len(network.blocks), work.draft.carried.get("hidden")
    for number in range(n_blocks):
        step = f"block {number}"
        work.progress(number, n_blocks, step)
        if work.draft.kept(step) is not None:
            continue
        if hidden is None and work.tokens is not None:
            hidden = network.embedded(work.tokens)
        with network.loaded(number):
            linears = network.linears(number)
            if hidden is None:
                for linear in linears:
                    prune((linear,), iter(()))
            else:
                for group in groups(network, number, hidden, linears):
                    prune(group, inputs(network, number, hidden, group[0]))
                if number < n_blocks - 1:
                    network.forward(number, hidden, out=hidden)
            put = {linear.name: stored(linear, work.source) for linear in linears}
        facts = {
            "zeros": sum(int((values == 0).sum()) for values in put.values()),
            "weights": sum(values.numel() for values in put.values()),
        }
        carried = hidden is not None and number < n_blocks - 1
        work.draft.keep(step, put, carry={"hidden": hidden} if carried else {}, facts=facts)
    work.draft.notes.append(NOTE.format(share=_share(work, n_blocks)))


def _share(work: Work, n_blocks: int) -> float:
    facts = [work.draft.kept(f"block {number}") or {} for number in range(n_blocks)]
    return float(sum(f["zeros"] for f in facts) / sum(f["weights"] for f in facts))


def stored(linear: Linear, source: Source) -> Any:
    """A layer's weight as the checkpoint stores it: its orientation and its type."""
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    weight = linear.weight.T if linear.transposed else linear.weight
    return weight.to(kinds[source.tensors[linear.name].dtype]).contiguous()
