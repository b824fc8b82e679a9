"""`Spot`: a part of a window, what it spent, and the parts inside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Energy
from negawatt.hotspots.tally import Key, Kind


@dataclass(frozen=True)
class Spot:
    """A part of the window and what it spent.

    Attributes:
        name, kind, place: what it is; see `Key`.
        energy, cpu_s: with everything inside it.
        self_energy, self_cpu_s: without the parts inside it. Over the whole tree these add up to
            the window.
        count: samples that hit it, or calls, itself.
        flops: floating-point operations with everything inside; None where nobody counts them.
        moved_bytes: bytes of the tensors read and written, with everything inside; None likewise.
        inside: the parts inside it, dearest first.
    """

    name: str
    kind: Kind
    place: str
    energy: Energy
    self_energy: Energy
    cpu_s: float
    self_cpu_s: float
    count: int
    flops: float | None = None
    moved_bytes: float | None = None
    inside: tuple[Spot, ...] = ()

    def walk(self) -> Iterator[Spot]:
        """This part and all inside it, parents first."""
        yield self
        for part in self.inside:
            yield from part.walk()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "place": self.place or None,
            "energy": self.energy.to_json(),
            "self_energy": self.self_energy.to_json(),
            "cpu_s": self.cpu_s,
            "self_cpu_s": self.self_cpu_s,
            "count": self.count,
            "flops": self.flops,
            "moved_bytes": self.moved_bytes,
            "inside": [part.to_json() for part in self.inside],
        }


def merged(spots: Sequence[Spot], outer: Sequence[Spot] | None = None) -> Spot:
    """Spots of one kind as one, with what is inside them, part by part.

    Args:
        spots: whose own figures are added up.
        outer: whose figures with everything inside are added up: those of `spots` that are not
            inside one another. By default all.
    """
    outer = spots if outer is None else outer
    inside: dict[Key, list[Spot]] = {}
    for part in (part for spot in outer for part in spot.inside):
        inside.setdefault(Key(part.name, part.kind, part.place), []).append(part)
    return replace(
        spots[0],
        energy=Energy.total(s.energy for s in outer),
        self_energy=Energy.total(s.self_energy for s in spots),
        cpu_s=math.fsum(s.cpu_s for s in outer),
        self_cpu_s=math.fsum(s.self_cpu_s for s in spots),
        count=sum(s.count for s in spots),
        flops=known([s.flops for s in outer]),
        moved_bytes=known([s.moved_bytes for s in outer]),
        inside=tuple(sorted((merged(parts) for parts in inside.values()), key=lambda s: -s.cpu_s)),
    )


def pruned(spot: Spot, least_cpu_s: float) -> Spot:
    """The same tree without parts that used less CPU time; each parent keeps theirs as ``smaller parts``."""
    large = [p for p in spot.inside if p.cpu_s >= least_cpu_s or p.kind == "device"]
    small = [p for p in spot.inside if p.cpu_s < least_cpu_s and p.kind != "device"]
    inside = tuple(pruned(part, least_cpu_s) for part in large)
    if small:
        all_of_them = merged(small)
        one = replace(
            all_of_them,
            name="smaller parts",
            kind="rest",
            place="",
            self_energy=all_of_them.energy,
            self_cpu_s=all_of_them.cpu_s,
            count=sum(part.count for tiny in small for part in tiny.walk()),
            inside=(),
        )
        inside = (*inside, one)
    return replace(spot, inside=inside)


def known(values: list[float | None]) -> float | None:
    """The sum of those that were counted; None when none was."""
    counted = [v for v in values if v is not None]
    return math.fsum(counted) if counted else None
