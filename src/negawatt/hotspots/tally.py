"""`Tally`: a tree of who used how much CPU time, as it is counted; no joules yet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["whole", "stage", "function", "module", "operator", "device", "rest"]
"""What a part is: ``rest`` is CPU time that no function or operator can be named for."""

DEEPEST = 160
"""Frames below this depth are counted in the last one: nobody reads a stack a thousand deep."""


class Key(NamedTuple):
    """What makes two parts under one parent the same.

    Attributes:
        name: of the function, module or operator.
        kind: see `Kind`.
        place: where it is: ``file:line`` of a function, class and role of a module; may be empty.
    """

    name: str
    kind: Kind
    place: str = ""


@dataclass
class Tally:
    """One part and the parts inside it.

    Attributes:
        key: what it is.
        cpu_s: CPU seconds of the part itself, without the parts inside it.
        count: samples, or calls, of the part itself.
        flops: floating-point operations of the part itself; None where nobody counts them.
        moved_bytes: bytes of the tensors it read and wrote itself; None where nobody counts them.
        inside: the parts inside it.
    """

    key: Key
    cpu_s: float = 0.0
    count: int = 0
    flops: float | None = None
    moved_bytes: float | None = None
    inside: dict[Key, Tally] = field(default_factory=dict)

    def part(self, key: Key) -> Tally:
        """The part of that key, made when it is not there yet."""
        found = self.inside.get(key)
        if found is None:
            found = self.inside[key] = Tally(key)
        return found

    def add(
        self,
        path: Sequence[Key],
        cpu_s: float,
        count: int = 1,
        flops: float | None = None,
        moved_bytes: float | None = None,
    ) -> None:
        """Add to the part that `path` leads to. A function that calls itself is one part."""
        here = self
        for key in path[:DEEPEST]:
            if key != here.key:
                here = here.part(key)
        here.cpu_s += cpu_s
        here.count += count
        here.flops = _plus(here.flops, flops)
        here.moved_bytes = _plus(here.moved_bytes, moved_bytes)

    def merge(self, other: Tally) -> None:
        """Add everything of `other`, part by part."""
        self.cpu_s += other.cpu_s
        self.count += other.count
        self.flops = _plus(self.flops, other.flops)
        self.moved_bytes = _plus(self.moved_bytes, other.moved_bytes)
        for key, part in other.inside.items():
            self.part(key).merge(part)

    def walk(self) -> Iterator[Tally]:
        """This part and all inside it, parents first."""
        yield self
        for part in self.inside.values():
            yield from part.walk()

    def total_cpu_s(self) -> float:
        """CPU seconds with everything inside."""
        return math.fsum(part.cpu_s for part in self.walk())


def _plus(left: float | None, right: float | None) -> float | None:
    """A sum in which what nobody counted adds nothing, and nothing counted stays unknown."""
    if left is None or right is None:
        return right if left is None else left
    return left + right
