"""`Folding`: scales of a layer's inputs, taken back in what gives those inputs.

Which module can take a scale back is not looked up by name: candidates are tried on a piece of text, and
one is accepted when the block gives what it gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Linear, Network
from negawatt.compress.source import Source

if TYPE_CHECKING:
    import torch

_SAMPLE = 64
"""Tokens on which a candidate is tried."""
_SAME = 1e-3
"""Largest change of what a block adds to a token, relative to it, that is rounding (its median over tokens:
where the residual stream holds huge values, a few tokens say nothing)."""


class Folding:
    """Takes scales of inputs back in what gives those inputs, where that is shown to change nothing."""

    def __init__(self, network: Network, number: int, hidden: torch.Tensor) -> None:
        """Args:
        network: with block `number` loaded.
        hidden: what the block gets, shape ``(windows, length, hidden)``.
        """
        self._network, self._number, self._sample = network, number, hidden[:1, :_SAMPLE].clone()
        self._block = network.blocks[number]
        self._touched: dict[str, Any] = {}

    def take(self, layers: Sequence[Linear], scale: torch.Tensor) -> bool:
        """Multiply the layers' inputs by `scale` in their weights; False when nothing can divide by it."""
        with self._network.exact():
            expected = self._network.forward(self._number, self._sample)
            originals = [linear.weight.clone() for linear in layers]
            for linear, weight in zip(layers, originals, strict=True):
                linear.put(weight * scale)
            for path, divide in self._ways(layers, scale):
                parameters = dict(self._block.get_submodule(path).named_parameters(recurse=False))
                before = {name: p.data.clone() for name, p in parameters.items()}
                divide(parameters)
                given = self._network.forward(self._number, self._sample)
                gone = (given - expected).norm(dim=-1) / (expected - self._sample).norm(dim=-1)
                if float(gone.median()) <= _SAME:
                    self._touched |= {f"{path}.{name}": p for name, p in parameters.items()}
                    return True
                for name, p in parameters.items():
                    p.data = before[name]
            for linear, weight in zip(layers, originals, strict=True):
                linear.put(weight)
            return False

    def _ways(
        self, layers: Sequence[Linear], scale: torch.Tensor
    ) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
        """Modules whose outputs are as many as the inputs, with ways of dividing their outputs."""
        linears = {linear.path: linear for linear in self._network.linears(self._number)}
        ours = {linear.path for linear in layers}
        for path, module in self._block.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or path in ours:
                continue
            if path in linears and linears[path].outputs == len(scale):
                yield path, _dividing(scale, rows=not linears[path].transposed, shift=0.0)
            elif weight.dim() == 1 and len(weight) == len(scale):
                yield path, _dividing(scale, rows=False, shift=0.0)
                yield path, _dividing(scale, rows=False, shift=1.0)  # norms that add 1 to their weight

    def changed(self, source: Source) -> dict[str, torch.Tensor]:
        """The parameters that took a scale, but for the matrices, which are still to be quantized."""
        import torch

        kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
        names = self._network.names(self._number)
        return {
            names[path]: p.data.to(kinds.get(source.tensors[names[path]].dtype, torch.float32))
            for path, p in self._touched.items()
            if p.dim() == 1
        }


def _dividing(scale: torch.Tensor, *, rows: bool, shift: float) -> Callable[[dict[str, Any]], None]:
    """Divides outputs in a module's parameters: rows or columns of a matrix, a norm's weight, a bias."""

    def divide(parameters: dict[str, Any]) -> None:
        for parameter in parameters.values():
            data = parameter.data
            add = shift if parameter is parameters.get("weight") else 0.0
            parameter.data = (
                (data / scale[:, None]) if data.dim() == 2 and rows else (data + add) / scale - add
            )

    return divide
