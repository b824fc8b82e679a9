"""`FactoredTensor`: a matrix on disk as the product of a tall and a wide one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.safetensors_file import StoredTensor


@dataclass(frozen=True, slots=True)
class FactoredTensor:
    """A weight ``left @ right`` of outputs × inputs.

    Attributes:
        left: shape ``(outputs, rank)``.
        right: shape ``(rank, inputs)``.
        dtype: type of the matrix before it was factored, as safetensors names it.
        transposed: the checkpoint stores it as inputs × outputs.
    """

    left: StoredTensor
    right: StoredTensor
    dtype: str
    transposed: bool = False

    @classmethod
    def of(cls, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> FactoredTensor:
        """Put a matrix together from its parts and what the header says of it.

        Raises:
            ValueError: the parts are not all there, or do not fit each other.
        """
        left, right = parts.get("left"), parts.get("right")
        if not isinstance(left, StoredTensor) or not isinstance(right, StoredTensor):
            raise ValueError("left or right is missing")
        rank = int(facts["rank"])
        if left.shape[1:] != (rank,) or right.shape[:1] != (rank,) or len(right.shape) != 2:
            raise ValueError(f"left {left.shape} and right {right.shape} are not of rank {rank}")
        return cls(left, right, str(facts["dtype"]), bool(facts["transposed"]))

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint stores it."""
        rows, columns = self.left.shape[0], self.right.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def n_bytes(self) -> int:
        return self.left.n_bytes + self.right.n_bytes

    @property
    def parts(self) -> dict[str, StoredTensor]:
        """Its tensors by the suffix of their names."""
        return {"left": self.left, "right": self.right}

    def float32(self) -> NDArray[np.float32]:
        """The product in fp32, as the checkpoint stores it."""
        weight = self.left.float32() @ self.right.float32()
        return np.ascontiguousarray(weight.T) if self.transposed else weight

    def facts(self) -> dict[str, Any]:
        """What the file's header says of it."""
        return {"rank": self.rank, "dtype": self.dtype, "transposed": self.transposed}
