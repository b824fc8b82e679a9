"""`Linear`: a linear layer of a block, the same for every family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.errors import ArtifactError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a block.

    Attributes:
        path: its name within the block, such as ``self_attn.q_proj``.
        name: its weight's name in the checkpoint.
        module: the module; its weight is there while the block is loaded.
        transposed: the weight is stored as ``(in, out)``, as GPT-2 has it.
        inputs, outputs: its width on either side.
    """

    path: str
    name: str
    module: Any
    transposed: bool
    inputs: int
    outputs: int

    @property
    def weight(self) -> torch.Tensor:
        """The loaded weight, shape ``(outputs, inputs)``; a view."""
        weight: torch.Tensor = self.module.weight.data
        return weight.T if self.transposed else weight

    def put(self, values: torch.Tensor) -> None:
        """Replace the loaded weight, shape ``(outputs, inputs)``."""
        self.module.weight.data = values.T.contiguous() if self.transposed else values


def linears_of(block: Any, names: Mapping[str, str], where: str) -> list[Linear]:
    """The linear layers of a block, in the order in which it names them.

    Args:
        block: its module.
        names: its parameters by their path within it, with their names in the checkpoint.
        where: what to call it in a message.

    Raises:
        ArtifactError: it holds a matrix in a kind of layer that is not known here.
    """
    import torch

    found, known = [], set[str]()
    for path, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() < 2:
            continue
        conv = type(module).__name__ == "Conv1D"
        if not conv and not isinstance(module, torch.nn.Linear):
            known |= {f"{path}.weight"} if isinstance(module, torch.nn.Embedding) else set()
            continue
        rows, columns = weight.shape
        outputs, inputs = (columns, rows) if conv else (rows, columns)
        found.append(Linear(path, names[f"{path}.weight"], module, conv, inputs, outputs))
        known.add(f"{path}.weight")
    for path in names:
        owner, _, leaf = path.rpartition(".")
        holder = block.get_submodule(owner)
        if path not in known and getattr(holder, leaf).dim() > 1:
            raise ArtifactError(
                f"{path} in {where} belongs to a {type(holder).__name__}, a kind of layer that no pass here "
                "knows"
            )
    return found
