"""`Device`: something beside the processor that an engine can run layers on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """As the engine's library tells of it.

    Attributes:
        device: what `Settings.device` calls it.
        name: the library's own name, such as ``Vulkan0``.
        description: what it is, such as its product name.
        memory_bytes: its memory, which may be the system's; None where it is not told.
    """

    device: str
    name: str
    description: str
    memory_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Device:
        """Read back what `to_json` wrote."""
        return cls(**data)

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.1f} GiB"
        return f"{self.name} ({self.description}{memory})"
