"""`Placements`: how many of a model's layers a search tries on other devices than the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from negawatt.artifact import Artifact
from negawatt.engine.backends import accelerator_of, backend
from negawatt.errors import NegawattError, UsageError
from negawatt.tuning.cost import Cost
from negawatt.tuning.space import ALL, Space

QUARTERS = 4
"""Unasked, so many parts of a model are placed one after the other, from none to all."""


@dataclass(frozen=True)
class Placements:
    """Where layers can be placed in a search, and what it then counts.

    Attributes:
        devices: engine → its name of the device that layers are tried on; empty where none are.
        cost: what the search goes by.
        note: what whoever reads its result has to know.
    """

    devices: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    note: str = ""

    @classmethod
    def here(cls, space: Space, device: str, *, cluster: bool = False) -> Placements:
        """What this machine offers to a space.

        Unasked, layers are tried elsewhere only where a search goes by joules of counters that hold what that
        device draws, for CPU seconds hold nothing of it; and not on the machines of a cluster.

        Args:
            device: that the baseline runs on.

        Raises:
            UsageError: a number of layers is asked for, and no engine of the space finds a device.
        """
        usual = dict.fromkeys((device, "cpu"))
        asked = space.gpu_layers is not None
        found, reasons = ({}, []) if cluster and not asked else _found(space)
        if asked and not found:
            raise UsageError(f"gpu_layers: there is nothing to place layers on: {'; '.join(reasons)}")
        cost = Cost.here([*usual, *found.values()]) if found else Cost()
        if cost.in_joules:
            return cls(found, cost)
        if not asked:
            return cls({}, Cost.here(usual))
        told = " and ".join(sorted(set(found.values())))
        return cls(
            found, cost, f"the search goes by CPU seconds, which hold nothing of what {told} devices draw"
        )

    def within(self, space: Space, models: Sequence[Artifact]) -> Space:
        """The space with numbers of layers to try: those asked for, or none, quarters and all of the models'.

        Raises:
            UsageError: a model has fewer layers than are asked for.
        """
        if not self.devices:
            return replace(space, gpu_layers=None)
        most = min(model.shape.n_layers for model in models)
        usual = tuple(most * part // QUARTERS for part in range(QUARTERS + 1))
        layers = {}
        for name in self.devices:
            asked = (space.gpu_layers or {}).get(name, usual)
            numbers = {most if number == ALL else number for number in asked}
            if max(numbers) > most:
                raise UsageError(
                    f"gpu_layers: the model has {most} layers, of which {max(numbers)} cannot be placed"
                )
            layers[name] = tuple(sorted(numbers))
        return replace(space, gpu_layers=layers)


def _found(space: Space) -> tuple[dict[str, str], list[str]]:
    """Engine → device for those that have one here, and why the others have none."""
    found, reasons = {}, []
    for name in space.engines:
        kind = backend(name)
        if not kind.has_gpu_layers:
            continue
        try:
            if kind.accelerators():
                found[name] = accelerator_of(name)
            else:
                reasons.append(f"{name} finds no {accelerator_of(name)} device here")
        except NegawattError as exc:
            reasons.append(str(exc))
    return found, reasons or ["none of the engines can run a part of a model elsewhere"]
