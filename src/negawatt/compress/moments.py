"""Second moments of what the linear layers of a block get: the Hessians of layer-wise quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Linear, Network

if TYPE_CHECKING:
    import torch

_TILE = 512


@dataclass(frozen=True)
class Moment:
    """Layers that get the same inputs, and the second moment of those.

    Attributes:
        linears: such as query, key and value.
        matrix: mean of ``x xᵀ`` over all tokens, fp32, shape ``(inputs, inputs)``.
    """

    linears: tuple[Linear, ...]
    matrix: torch.Tensor


def moments(network: Network, number: int, hidden: torch.Tensor, linears: Sequence[Linear]) -> list[Moment]:
    """Run a loaded block on hidden states, and gather the moments of the layers' inputs.

    Args:
        network: with block `number` loaded.
        hidden: what the block gets, shape ``(windows, length, hidden)``; left as it is.
        linears: the layers of the block to look at.
    """
    import torch

    sums: dict[tuple[str, ...], torch.Tensor] = {}
    seen: dict[int, tuple[torch.Tensor, list[str]]] = {}

    def note(linear: Linear) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            value = inputs[0]
            seen.setdefault(value.data_ptr(), (value, []))[1].append(linear.path)

        return linear.module.register_forward_pre_hook(hook)

    hooks = [note(linear) for linear in linears]
    n_tokens = 0
    try:
        for batch in network.batches(hidden):
            network.forward(number, batch)
            for value, paths in seen.values():
                rows = value.reshape(-1, value.shape[-1]).float()
                key = tuple(paths)
                if key not in sums:
                    sums[key] = torch.zeros(rows.shape[1], rows.shape[1])
                _add_products(sums[key], rows)
            seen.clear()
            n_tokens += batch.shape[0] * batch.shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    by_path = {linear.path: linear for linear in linears}
    return [Moment(tuple(by_path[p] for p in paths), _mirrored(matrix) / n_tokens)
            for paths, matrix in sums.items()]  # fmt: skip


def _add_products(into: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``rowsᵀ rows`` on and above the diagonal, tile by tile: half the work of the whole."""
    width = rows.shape[1]
    for begin in range(0, width, _TILE):
        into[begin : begin + _TILE, begin:].addmm_(rows[:, begin : begin + _TILE].T, rows[:, begin:])


def _mirrored(upper: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix from its upper half."""
    return upper.triu() + upper.triu(1).T
