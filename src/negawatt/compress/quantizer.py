"""What all quantizing passes share: the layers they work on, and the embedding and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from negawatt.compress.draft import Quantized
from negawatt.compress.grid import Grid, refuse_indivisible
from negawatt.compress.network import Linear, Network
from negawatt.compress.source import Source
from negawatt.compress.technique import Work

if TYPE_CHECKING:
    import torch

EMBEDDING_GROUP = 32
"""Embedding and head in 8 or 4 bits share scales between this many weights, as GGUF's types do."""


def check_groups(source: Source, group: int, technique: str) -> None:
    """Refuse a group that does not divide the inputs of a block's layers.

    Raises:
        UsageError: it does not divide; the sentence names those that do.
    """
    network = Network(source)
    refuse_indivisible(source, {n.path: n.inputs for n in network.linears(0)}, group, technique)


def quantize_blocks(work: Work, embeddings: int, quantize: Callable[[Linear, str], Quantized]) -> None:
    """Quantize every linear layer by itself, block by block, then embedding and head.

    Args:
        work: whose draft is filled.
        embeddings: bits of embedding and head; 0 leaves them.
        quantize: gets a layer with its weight loaded, and the type in which the checkpoint stores it.
    """
    network = work.network()
    n_blocks = len(network.blocks)
    for number in range(n_blocks):
        step = f"block {number}"
        work.progress(number, n_blocks + 1, step)
        if work.draft.kept(step) is not None:
            continue
        with network.loaded(number):
            put = {
                linear.name: quantize(linear, work.source.tensors[linear.name].dtype)
                for linear in network.linears(number)
            }
        work.draft.keep(step, put)
    finish_outer(work, network, embeddings)


def finish_outer(work: Work, network: Network, embeddings: int) -> None:
    """The last step of every quantizer: embedding and head."""
    n_blocks = len(network.blocks)
    if work.draft.kept("embeddings") is None:
        work.progress(n_blocks, n_blocks + 1, "embeddings")
        work.draft.keep("embeddings", quantize_outer(network, embeddings))


def quantize_outer(network: Network, bits: int) -> dict[str, Quantized]:
    """The embedding and the head, if untied, on a symmetric grid of `bits` bits; nothing for 0.

    Norms and positions stay as they are.
    """
    if not bits:
        return {}
    model = network.model
    ends = [e for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
    paths = {f"{path}.weight" for path, module in model.named_modules() if any(module is e for e in ends)}
    wanted = {name for path, name in network.outer.items() if path in paths}
    grid = Grid(bits, EMBEDDING_GROUP, symmetric=True)
    found = {}
    for name in sorted(wanted):
        weight = network.source.tensor(name)
        if weight.shape[1] % EMBEDDING_GROUP == 0:
            found[name] = nearest(grid, weight, clip=True, dtype=network.source.tensors[name].dtype)
    return found


def nearest(
    grid: Grid, weight: torch.Tensor, *, clip: bool, dtype: str, transposed: bool = False
) -> Quantized:
    """A weight of shape ``(out, in)`` rounded to the nearest point of the grid, in slices of rows."""
    import torch

    parts = []
    for rows in weight.split(4096):
        scale, offset = grid.scaled(rows, clip=clip)
        parts.append((grid.rounded(rows, scale, offset), scale, offset))
    codes, scales = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    offsets = None if grid.symmetric else torch.cat([p[2] for p in parts])
    return grid.quantized(codes, scales, offsets, dtype=dtype, transposed=transposed)
