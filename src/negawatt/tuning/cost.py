"""`Cost`: the unit that a search goes by: joules of counters that were seen to move, else CPU seconds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from negawatt.energy import Provenance
from negawatt.errors import EngineError, RunError
from negawatt.limits.gpu import number_of
from negawatt.meter import Measurement, station
from negawatt.meter.station import Station
from negawatt.profiling.summary import Summary
from negawatt.profiling.window import Window

Unit = Literal["cpu_s", "J"]

TOO_SLOW_S = 0.1
"""A counter that is refreshed less often than this tells too little of a window of a search."""


@dataclass(frozen=True)
class Cost:
    """What a search counts, decided once at its start.

    **Joules** are those that the meter charges to a candidate's engine (`Measurement.components`: of each
    package, idle power included, its share of the busy CPU time, and all of a GPU that it runs on), for each
    output. They are not divided by the reference load. Its 20 CPU-milliseconds cannot be told in joules where
    counters are refreshed every millisecond and the share of other processes is known in ticks of ten; and
    its CPU seconds would take out the wrong thing: a power cap or a lower clock slows the load as it slows
    the engine, so dividing by it would hide just what the limit costs. What neighbours do to joules (they
    carry a part of the idle power, and take turbo and bandwidth away) stays in the costs of single trials;
    finalists are compared in windows taken in turn, which have it in common.

    **CPU seconds** are divided by the reference load's, because on a shared host the same work takes more of
    them at one time than at another.

    Costs of different units, or of different counters, are never compared.

    Attributes:
        unit: ``J`` or ``cpu_s``.
        counters: ``sensor:component`` of those that are added up; none for CPU seconds.
    """

    unit: Unit = "cpu_s"
    counters: tuple[str, ...] = ()

    @classmethod
    def here(cls, devices: Collection[str] = ("cpu",), where: Station | None = None) -> Cost:
        """What a search on this machine can go by.

        Args:
            devices: that its candidates run on, as in `negawatt.engine.Settings`.
            where: the sensors; by default those that the meter uses.
        """
        found = {each.partition(":")[2]: each for each in counters_here(where)}
        if not all(_spent_by(device, found) for device in devices):
            return cls()
        used = {name for device in devices for name in _spent_by(device, found)}
        return cls("J", tuple(found[name] for name in sorted(used))) if used else cls()

    @property
    def in_joules(self) -> bool:
        return self.unit == "J"

    @property
    def text(self) -> str:
        """Such as ``goes by joules of rapl:cpu/0``."""
        return f"goes by joules of {', '.join(self.counters)}" if self.in_joules else "goes by CPU seconds"

    @property
    def name(self) -> str:
        """Costs of one name can be compared."""
        return " ".join((self.unit, *self.counters))

    # -- counting ----------------------------------------------------------------------------------

    def per_output(self, windows: Sequence[Window], devices: Collection[str] = ("cpu",)) -> float:
        """Joules or CPU seconds for each output over some windows of one candidate, prefill included.

        Of a search among documents, joules are shared between queries and documents as CPU time is, as in
        `Summary.energy_per_token`.

        Raises:
            EngineError: joules of a window are missing.
        """
        summary = Summary(tuple(windows))
        if not self.in_joules:
            return summary.cpu_s_per_token
        spent_j = sum(self.joules(window.measurement, devices) for window in windows)
        return spent_j * summary.cpu_s_per_token / summary.cpu_s

    def joules(self, measurement: Measurement, devices: Collection[str] = ("cpu",)) -> float:
        """Joules that the counters charge to what was measured.

        Raises:
            EngineError: those of a counter are missing, or it counted none: that is not 0 J.
        """
        components = [each.partition(":")[2] for each in self.counters]
        used = {name for device in devices for name in _spent_by(device, components)}
        total_j = 0.0
        for name in sorted(used):
            energy = measurement.components.get(name)
            if energy is None or energy.value_j is None or energy.provenance > Provenance.DERIVED:
                raise EngineError(f"the joules of {name} are missing: {_why(measurement, name)}")
            total_j += energy.value_j
        if total_j <= 0:
            raise EngineError(
                f"the joules of {', '.join(sorted(used))} are missing: the counters did not move over a "
                f"window of {measurement.duration_s:.3g} s"
            )
        return total_j

    def at_start(self, value: float, reference_s: float, then_s: float) -> float:
        """A cost measured later as it would have been at the start of the run.

        Args:
            reference_s, then_s: cost of the reference load at the start and at the time; see the class.
        """
        return value if self.in_joules else value * reference_s / then_s

    # -- records -----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "counters": list(self.counters), "text": self.text}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Cost:
        """Read back what `to_json` wrote; None is of a run by an older version, which went by CPU seconds.

        Raises:
            RunError: it names another unit.
        """
        if data is None:
            return cls()
        unit, counters = data.get("unit"), tuple(map(str, data.get("counters") or ()))
        if unit == "cpu_s":
            return cls()
        if unit != "J" or not counters:
            raise RunError(f"a cost in {unit!r} is unknown here; known: cpu_s, J")
        return cls("J", counters)

    def refuse_elsewhere(self, here: Cost) -> None:
        """
        Raises:
            RunError: counters that this goes by can no longer be trusted here.
        """
        if lost := sorted(set(self.counters) - set(here.counters)):
            raise RunError(
                f"this search {self.text}, and {lost[0]} cannot be read here any more; see: negawatt doctor"
            )


CPU_SECONDS = Cost()
"""What is counted where no counter of joules was seen to move."""


def counters_here(where: Station | None = None) -> tuple[str, ...]:
    """``sensor:component`` of trusted counters of chips that are quick enough to tell of a window."""
    where = where or station()
    found = {name: (where.sensor(name), total.counter) for name, total in where.totals().items()}
    return tuple(
        f"{sensor.name}:{name}"
        for name, (sensor, counter) in found.items()
        if sensor is not None
        and counter.boundary == "chip"
        and not counter.part_of
        and counter.provenance <= Provenance.DERIVED
        and counter.refresh_s <= TOO_SLOW_S
    )


def _spent_by(device: str, components: Iterable[str]) -> list[str]:
    """Components that an engine on a device spends; none where some of it would go uncounted."""
    found = list(components)
    own = [name for name in found if name.startswith(("cpu/", "dram/"))]
    if not any(name.startswith("cpu/") for name in own):
        return []
    if device == "cpu":
        return own
    if device.partition(":")[0] not in ("cuda", "vulkan"):
        return []
    number = number_of(device)
    gpus = [n for n in found if n.startswith("gpu/") and number in (None, _gpu(n))]
    return [*own, *gpus] if gpus else []


def _gpu(component: str) -> int | None:
    number = component.partition("/")[2]
    return int(number) if number.isdigit() else None


def _why(measurement: Measurement, name: str) -> str:
    """Why a counter says nothing of a window."""
    told = measurement.machine.get(name)
    if told is not None and told.reason:
        return told.reason
    others = [e.reason for n, e in measurement.machine.items() if n.startswith("cpu/") and e.is_missing]
    return next(filter(None, others), "its counter was not read over this window")
