"""What the linear layers of a block get: groups with common inputs, each visited in a run of its own.

A pass that changes the layers of a block one group after the other sees, in every group, what the
groups changed before it give: the errors it makes are the ones that later groups can still mend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Linear, Network

if TYPE_CHECKING:
    import torch


class _Reached(Exception):
    """The layer whose inputs are wanted has got them; the rest of the block need not run."""


def groups(
    network: Network, number: int, hidden: torch.Tensor, linears: Sequence[Linear]
) -> list[tuple[Linear, ...]]:
    """The layers of a loaded block that get the same inputs, in the order in which they run.

    Args:
        network: with block `number` loaded.
        hidden: what the block gets, shape ``(windows, length, hidden)``; the first window is run.
        linears: the layers to sort; one that is never run is left out.
    """
    seen: dict[int, tuple[torch.Tensor, list[Linear]]] = {}  # holds the tensors: addresses stay unique

    def note(linear: Linear) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(inputs[0].data_ptr(), (inputs[0], []))[1].append(linear)

        return linear.module.register_forward_pre_hook(hook)

    hooks = [note(linear) for linear in linears]
    try:
        network.forward(number, hidden[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(group) for _, group in seen.values()]


def inputs(network: Network, number: int, hidden: torch.Tensor, linear: Linear) -> Iterator[torch.Tensor]:
    """Yield what a layer gets, a few windows at a time, fp32, shape ``(tokens, inputs)``.

    The block runs only as far as the layer.

    Args:
        network: with block `number` loaded.
        hidden: what the block gets, shape ``(windows, length, hidden)``; left as it is.
        linear: the layer.
    """
    found: list[torch.Tensor] = []

    def stop(module: Any, given: tuple[torch.Tensor, ...]) -> None:
        found.append(given[0].reshape(-1, given[0].shape[-1]).float())
        raise _Reached

    hook = linear.module.register_forward_pre_hook(stop)
    try:
        for batch in network.batches(hidden):
            try:
                network.forward(number, batch)
            except _Reached:
                yield found.pop()
    finally:
        hook.remove()
