"""Second moments of what the linear layers of a block get: the Hessians of layer-wise quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Linear, Network

if TYPE_CHECKING:
    import torch

_TILE = 512


@dataclass(frozen=True)
class Moment:
    """Layers that get the same inputs, and the second moments of those.

    Attributes:
        linears: such as query, key and value.
        matrix: mean of ``x xᵀ`` over all tokens, fp32, shape ``(inputs, inputs)``.
        drift: mean of ``(y − x) xᵀ``, where y is what the layer gets in the original model; None
            where that was not asked for.
    """

    linears: tuple[Linear, ...]
    matrix: torch.Tensor
    drift: torch.Tensor | None = None


def moments(
    network: Network,
    number: int,
    hidden: torch.Tensor,
    linears: Sequence[Linear],
    original: torch.Tensor | None = None,
) -> list[Moment]:
    """Run a loaded block on hidden states, and gather the moments of the layers' inputs.

    Args:
        network: with block `number` loaded.
        hidden: what the block gets, shape ``(windows, length, hidden)``; left as it is.
        linears: the layers of the block to look at.
        original: what the block gets in the original model; overwritten with what it gives there.
    """
    import torch

    matrices: dict[tuple[str, ...], torch.Tensor] = {}
    drifts: dict[tuple[str, ...], torch.Tensor] = {}
    begin, n_rows = 0, Counter[tuple[str, ...]]()  # halves of an encoder-decoder differ
    for batch in network.batches(hidden):
        inputs = _inputs(network, number, batch, linears)[0]
        others: dict[tuple[str, ...], torch.Tensor] = {}
        if original is not None:
            part = original[begin : begin + len(batch)]
            others, given = _inputs(network, number, part, linears)
            part.copy_(given)
        begin += len(batch)
        for key, rows in inputs.items():
            n_rows[key] += len(rows)
            _add_products(matrices.setdefault(key, torch.zeros(rows.shape[1], rows.shape[1])), rows)
            if key in others:
                # What differs is small, so that bfloat16 keeps enough of it.
                product = (others[key] - rows).bfloat16().T @ rows.bfloat16()
                drifts[key] = drifts[key].add_(product) if key in drifts else product.float()
    by_path = {linear.path: linear for linear in linears}
    return [
        Moment(
            tuple(by_path[path] for path in key),
            _mirrored(matrix) / n_rows[key],
            drifts[key] / n_rows[key] if key in drifts else None,
        )
        for key, matrix in matrices.items()
    ]


def moment(rows: Iterable[torch.Tensor]) -> torch.Tensor:
    """Mean of ``x xᵀ`` over inputs that come in parts of shape ``(tokens, inputs)``; fp32."""
    import torch

    total, n_tokens = torch.zeros(0, 0), 0
    for part in rows:
        total = total if n_tokens else torch.zeros(part.shape[1], part.shape[1])
        _add_products(total, part)
        n_tokens += len(part)
    return _mirrored(total) / n_tokens


def _inputs(
    network: Network, number: int, batch: torch.Tensor, linears: Sequence[Linear]
) -> tuple[dict[tuple[str, ...], torch.Tensor], torch.Tensor]:
    """What the layers get, ``(tokens, inputs)``, by the paths of those that get the same; and the output."""
    seen: dict[int, tuple[torch.Tensor, list[str]]] = {}

    def noting(linear: Linear) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(inputs[0].data_ptr(), (inputs[0], []))[1].append(linear.path)

        return linear.module.register_forward_pre_hook(hook)

    hooks = [noting(linear) for linear in linears]
    try:
        output = network.forward(number, batch)
    finally:
        for hook in hooks:
            hook.remove()
    rows = {tuple(paths): value.reshape(-1, value.shape[-1]).float() for value, paths in seen.values()}
    return rows, output


def _add_products(into: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``rowsᵀ rows`` on and above the diagonal, tile by tile: half the work of the whole."""
    width = rows.shape[1]
    for begin in range(0, width, _TILE):
        into[begin : begin + _TILE, begin:].addmm_(rows[:, begin : begin + _TILE].T, rows[:, begin:])


def _mirrored(upper: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix from its upper half."""
    return upper.triu() + upper.triu(1).T
