"""`Hotspots`: the joules of a window shared over functions, or over a model's layers and operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Energy, Provenance
from negawatt.hotspots.roles import by_role
from negawatt.hotspots.spot import Spot, known, merged, pruned
from negawatt.hotspots.tally import Key, Kind, Tally
from negawatt.meter import Measurement
from negawatt.workload.intervals import wilson

_BY_CPU_TIME = ("cpu", "dram")
"""Components whose joules follow CPU time. A GPU works while the processor goes on: it keeps its own."""


@dataclass(frozen=True)
class Hotspots:
    """What a window spent, and on what.

    Attributes:
        title: what was looked at.
        measurement: the window.
        whole: the window as a tree of parts; their `Spot.self_energy` add up to its energy.
        samples: how many samples the shares rest on; None where every call was timed instead.
        looking_cpu_s: CPU seconds that looking itself cost, as far as it was seen.
        notes: sentences that a reader of the shares must know.
    """

    title: str
    measurement: Measurement
    whole: Spot
    samples: int | None
    looking_cpu_s: float
    notes: tuple[str, ...] = ()

    @classmethod
    def share(
        cls,
        title: str,
        tally: Tally,
        measurement: Measurement,
        *,
        samples: int | None = None,
        looking_cpu_s: float = 0.0,
        notes: tuple[str, ...] = (),
    ) -> Hotspots:
        """Share a window's joules over a tally's parts, by CPU time.

        Processors and memory are shared; every other component (a GPU, say) is a part of its own.
        With `samples` every interval also holds what sampling leaves open (Wilson, 95 %).
        """
        shared = [e for n, e in measurement.components.items() if n.split("/")[0] in _BY_CPU_TIME]
        apart = {n: e for n, e in measurement.components.items() if n.split("/")[0] not in _BY_CPU_TIME}
        split = _Split(Energy.total(shared), tally.total_cpu_s(), samples)
        whole = split.spot(tally)
        devices = tuple(
            Spot(name, "device", "", quiet(energy), quiet(energy), 0.0, 0.0, 0)
            for name, energy in apart.items()
        )
        whole = replace(whole, energy=quiet(measurement.energy), inside=(*whole.inside, *devices))
        return cls(title, measurement, whole, samples, looking_cpu_s, notes)

    def flat(self) -> list[Spot]:
        """Every function, module or operator once, wherever it was called from; dearest itself first.

        `Spot.energy` counts a call inside another call of the same once; `Spot.inside` is empty.
        """
        own: dict[Key, list[Spot]] = {}
        outer: dict[Key, list[Spot]] = {}
        _gather(self.whole, frozenset(), own, outer)
        flat = [replace(merged(spots, outer[key]), inside=()) for key, spots in own.items()]
        return sorted(flat, key=lambda s: (-s.self_cpu_s, -(s.self_energy.value_j or 0.0), s.name))

    def to_json(self) -> dict[str, Any]:
        """The document of ``negawatt hotspots``, without an exit code."""
        return {
            "title": self.title,
            **self.measurement.to_json(),
            "samples": self.samples,
            "looking_cpu_s": self.looking_cpu_s,
            "notes": list(self.notes),
            "roles": [role.to_json() for role in by_role(self.whole)],
            "flat": [_bare(spot.to_json()) for spot in self.flat()],
            "whole": pruned(self.whole, self.whole.cpu_s / 1000).to_json(),
        }


@dataclass(frozen=True)
class _Split:
    energy: Energy
    cpu_s: float
    samples: int | None

    def spot(self, tally: Tally) -> Spot:
        """A tally's part with its joules; the parts' own shares add up to the energy."""
        inside = sorted((self.spot(p) for p in tally.inside.values()), key=lambda s: (-s.cpu_s, s.name))
        cpu_s = math.fsum([tally.cpu_s, *(s.cpu_s for s in inside)])
        return Spot(
            name=tally.key.name,
            kind=tally.key.kind,
            place=tally.key.place,
            energy=self._part(cpu_s, tally.key.kind),
            self_energy=self._part(tally.cpu_s, tally.key.kind),
            cpu_s=cpu_s,
            self_cpu_s=tally.cpu_s,
            count=tally.count,
            flops=known([tally.flops, *(s.flops for s in inside)]),
            moved_bytes=known([tally.moved_bytes, *(s.moved_bytes for s in inside)]),
            inside=tuple(inside),
        )

    def _part(self, cpu_s: float, kind: Kind) -> Energy:
        share = cpu_s / self.cpu_s if self.cpu_s > 0 else 0.0
        part = quiet(self.energy.scaled(share))
        if part.value_j is None or self.energy.low_j is None or self.energy.high_j is None:
            return part
        # Of what was sampled the share itself is uncertain; the rest was timed.
        if not self.samples or kind != "function":
            return part
        open_ = wilson(round(share * self.samples), self.samples)
        low_j = min(part.value_j, self.energy.low_j * min(open_.low, share))
        high_j = max(part.value_j, self.energy.high_j * max(open_.high, share))
        return replace(part, low_j=low_j, high_j=high_j)


def quiet(energy: Energy) -> Energy:
    """The same without the list of models, which the window's own energy tells once."""
    return energy if energy.provenance is Provenance.MISSING else replace(energy, reason="")


def _gather(
    spot: Spot, above: frozenset[Key], own: dict[Key, list[Spot]], outer: dict[Key, list[Spot]]
) -> None:
    key = Key(spot.name, spot.kind, spot.place)
    own.setdefault(key, []).append(spot)
    if key not in above:
        outer.setdefault(key, []).append(spot)
    for part in spot.inside:
        _gather(part, above | {key}, own, outer)


def _bare(document: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if k != "inside"}
