"""`Meter`: measures a block of code, with the threads and processes it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import NamedTuple, Protocol

from negawatt.energy import Energy
from negawatt.errors import UsageError
from negawatt.meter.attribute import charged
from negawatt.meter.calibrated import power_here
from negawatt.meter.footprint import Footprint, FootprintTotal, Held
from negawatt.meter.machine import Share
from negawatt.meter.measurement import Measurement
from negawatt.meter.process import OwnTree, ProcessTree, Trees
from negawatt.meter.reader import election
from negawatt.meter.sensor import Boundary
from negawatt.meter.stages import Ledger
from negawatt.meter.station import Snapshot, Station, station


class Tree(Protocol):
    """Processes that are measured together."""

    def pids(self) -> Sequence[int]:
        """Those of them that run now, the root first, by one walk."""

    def cpu_s(self, pids: Sequence[int] | None = None) -> float:
        """CPU seconds they have used so far; never decreases. Does not walk again if given the `pids`."""

    def held(self, pids: Sequence[int]) -> Held:
        """The memory that these of them hold and the drive bytes they moved."""

    def footprint(self) -> FootprintTotal:
        """A new total, to add what they hold to."""


class Window:
    """One start and one stop, on one process tree: the part that all meters share.

    Both ends only note what the kernel says; what it means is worked out when it is asked for.

    Args:
        tree: tells the CPU seconds used so far by what is measured.
        where: the sensors; by default all that can be trusted here.
    """

    def __init__(self, tree: Tree, where: Station | None) -> None:
        self._tree = tree
        self._station = where
        self._start: tuple[Snapshot, float, FootprintTotal] | None = None
        self._ledger: Ledger | None = None

    def start(self) -> None:
        if self._start is not None:
            raise UsageError("this meter is already running; stop it first, or use another one")
        if self._station is None:
            self._station = station()
        self._ledger = None
        election.open_window()
        footprint, pids = self._tree.footprint(), self._tree.pids()
        footprint.note(self._tree.held(pids))
        self._start = (self._station.snapshot(), self._tree.cpu_s(pids), footprint)

    def look(self) -> None:
        """Note what runs now and what it holds, in a window that is long enough for either to change.

        A child that nobody waits for leaves no trace once it is gone.
        """
        if self._start is not None:
            self._held(self._start[2], self._tree.pids())

    def stop(self) -> Measurement:
        return self.close()()

    def close(self) -> Callable[[], Measurement]:
        """End the window; what is returned works out its figures, when they are asked for."""
        if self._start is None or self._station is None:
            raise UsageError("this meter is not running; start it first")
        left = self._ledger.finish() if self._ledger else []
        pids = self._tree.pids()
        cpu_s = self._tree.cpu_s(pids)
        after = self._station.snapshot()
        (before, cpu_before_s, footprint), self._start = self._start, None
        footprint.note(self._tree.held(pids))
        spent_s = max(0.0, cpu_s - cpu_before_s)
        return partial(_figures, self._station, before, after, spent_s, footprint, self._ledger, left)

    def so_far(self) -> Measurement:
        """What the running window has spent until now, without its stages; the window goes on."""
        if self._start is None or self._station is None:
            raise UsageError("this meter is not running; start it first")
        before, cpu_before_s, footprint = self._start
        pids = self._tree.pids()
        spent_s = max(0.0, self._tree.cpu_s(pids) - cpu_before_s)
        after = self._station.snapshot()
        held = self._held(footprint, pids)
        return _measurement(self._station, before, after, spent_s, held, footprint.share, election.leads)

    def _held(self, footprint: FootprintTotal, pids: Sequence[int]) -> Footprint:
        footprint.note(self._tree.held(pids))
        return footprint.total()

    def ledger(self) -> Ledger:
        """The stages of the running window; those who never ask for it pay nothing for it."""
        if self._start is None or self._station is None:
            raise UsageError("a stage needs a running meter; enter the meter's block first")
        if self._ledger is None:
            before, cpu_s, _ = self._start
            self._ledger = Ledger(self._tree.cpu_s, self._station.totals, before.at_s, cpu_s, before.totals)
        return self._ledger


def _figures(
    where: Station,
    before: Snapshot,
    after: Snapshot,
    cpu_s: float,
    footprint: FootprintTotal,
    ledger: Ledger | None,
    left: list[str],
) -> Measurement:
    """The measurement of a window, with its stages; those in `left` were still open at its end."""
    result = _measurement(where, before, after, cpu_s, footprint.total(), footprint.share)
    if ledger:
        refresh_s = {name: total.counter.refresh_s for name, total in after.totals.items()}
        result = replace(result, stages=ledger.stages(result.components, refresh_s, result.duration_s))
    for name in left:
        result = result.with_warning(f"stage {name} was still open at the end of the window")
    return result


def _measurement(
    where: Station,
    before: Snapshot,
    after: Snapshot,
    cpu_s: float,
    footprint: Footprint,
    share: Share,
    shared: bool | None = None,
) -> Measurement:
    if shared is None:
        shared = election.is_reader(before.at_s, after.at_s)
    duration_s = after.at_s - before.at_s
    time_before, time_after = before.time, after.time
    busy_s = time_after.busy_s - time_before.busy_s
    steal_s = time_after.steal_s - time_before.steal_s
    other_s = max(0.0, busy_s - cpu_s)
    spent = where.spent(before, after)
    components = charged(
        spent, before.totals, where.power, cpu_s=cpu_s, busy_s=busy_s, duration_s=duration_s, shared=shared
    )
    components |= footprint.beside(where.power, components)
    energy = Energy.total(components.values())
    idle = _idle(where, spent, components, cpu_s, duration_s)
    asleep_s = after.asleep_s - before.asleep_s
    # Where the model stands in for the processors' counters, its curve may hold more than the chips.
    boundary: Boundary = where.power.boundary if "cpu" in components else "chip"
    result = Measurement(
        started_s=before.at_s,
        duration_s=duration_s,
        energy=energy,
        components=components,
        machine=spent if shared else {},
        idle=idle,
        dynamic=energy - idle,
        cpu_s=cpu_s,
        other_cpu_s=other_s,
        steal_s=steal_s,
        boundary=boundary,
        warnings=(*where.notes, *_warnings(spent, cpu_s, other_s, steal_s, duration_s, asleep_s)),
        footprint=footprint,
        share=share,
    )
    return result if shared else result.with_warning(_NOT_READER)


_NOT_READER = "another process of this job reports what this host shares: GPUs, and the machine's own meters"


def _idle(
    where: Station,
    spent: Mapping[str, Energy],
    components: Mapping[str, Energy],
    cpu_s: float,
    duration_s: float,
) -> Energy:
    """The part of what is charged that would have flowed anyway: the same share of idle as of all."""
    parts = []
    for name, energy in components.items():
        if name in (
            "dram",
            "disk",
        ):  # estimated: memory draws power whether used or not, bytes only when moved
            parts.append(energy.scaled(1.0 if name == "dram" else 0.0))
            continue
        if name not in spent:
            parts.append(where.power.idle(cpu_s))
            continue
        if energy.is_missing:
            parts.append(Energy.missing(energy.reason))
            continue
        if where.idle is None:
            return Energy.missing("the idle power of this machine is unknown; negawatt calibrate --idle")
        whole = spent[name].value_j
        share = (energy.value_j or 0.0) / whole if whole else 0.0
        parts.append(where.idle.energy(name, duration_s).scaled(share))
    return Energy.total(parts)


def _warnings(
    spent: Mapping[str, Energy],
    cpu_s: float,
    other_s: float,
    steal_s: float,
    duration_s: float,
    asleep_s: float,
) -> list[str]:
    found = [f"{name}: {energy.reason}" for name, energy in spent.items() if energy.is_missing]
    if asleep_s > 1.0:  # the two clocks are read one after the other
        found.append(f"the machine was suspended for {asleep_s:.0f} s, which are not in the window")
    tick_s = 0.05  # the machine's times advance in ticks; less than a few of them says nothing
    if other_s > max(tick_s, 0.1 * max(cpu_s, duration_s)):
        found.append(f"other processes used {other_s:.2f} CPU-seconds meanwhile")
    if steal_s > max(tick_s, 0.02 * duration_s):
        found.append(f"the host withheld {steal_s:.2f} CPU-seconds from this virtual machine")
    return found


class Meter:
    """Measures this process and its children from entering to leaving the block.

    ::

        with Meter() as meter:
            work()
        print(meter.measurement.energy)

    Parts of the block can be named; they may nest, and overlap in threads and tasks::

        with meter.stage("preprocess"):
            prepare()

    Args:
        station: the sensors to use; by default all that can be trusted here.
    """

    def __init__(self, station: Station | None = None) -> None:
        self._window = Window(OwnTree(), station)
        self._figures: Callable[[], Measurement] | None = None
        self._measurement: Measurement | None = None
        self._outer: list[Token[_Place | None]] = []

    def __enter__(self) -> Meter:
        self._figures = self._measurement = None
        self._window.start()
        self._outer.append(_place.set(_Place(self, None)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._figures = self._window.close()
        _place.reset(self._outer.pop())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name a part of the block.

        A stage opened inside another, also by an asyncio task started there, belongs to it; one
        opened by another thread belongs to the block.

        Raises:
            UsageError: the block of the meter has not been entered.
        """
        here = _place.get()
        inside = here is not None and here.meter is self
        parent = here.stage if here is not None and inside else None
        names = (*here.names, name) if here is not None and inside else (name,)
        ledger = self._window.ledger()
        position = ledger.open(name, parent)
        token = _place.set(_Place(self, position, names))
        try:
            yield
        finally:
            _place.reset(token)
            ledger.close(position)

    def so_far(self) -> Measurement:
        """What the block has spent until now, without its stages; the block goes on.

        Raises:
            UsageError: the block has not been entered, or was left.
        """
        return self._window.so_far()

    @property
    def measurement(self) -> Measurement:
        """What the block spent.

        Raises:
            UsageError: the block has not been left yet.
        """
        if self._figures is None:
            raise UsageError("the measurement is there once the block of the meter has been left")
        if self._measurement is None:
            self._measurement = self._figures()
        return self._measurement


class _Place(NamedTuple):
    """Where in which meter the present context is."""

    meter: Meter
    stage: int | None
    names: tuple[str, ...] = ()


_place: ContextVar[_Place | None] = ContextVar("negawatt_place", default=None)


def active_meter() -> Meter | None:
    """The meter whose block the present thread or task is in, if any."""
    here = _place.get()
    return here.meter if here is not None else None


def active_stages() -> tuple[str, ...]:
    """Names of the stages that the present thread or task is in, outermost first."""
    here = _place.get()
    return here.names if here is not None else ()


class ProcessMeter:
    """Measures a running process and its children, as often as wanted, without disturbing it.

    Args:
        pid: the process; it must be running.
        others: further processes that are measured with it as one.
        station: the sensors to use; by default all that can be trusted here.

    Raises:
        UsageError: there is no such process.
    """

    def __init__(self, pid: int, station: Station | None = None, *, others: Sequence[int] = ()) -> None:
        tree: Tree
        try:
            tree = Trees((pid, *others)) if others else ProcessTree(pid)
        except ProcessLookupError as exc:
            raise UsageError(f"there is no process {pid} to measure") from exc
        self.pid = pid
        self._window = Window(tree, station)

    def start(self) -> None:
        """Begin a window.

        Raises:
            UsageError: a window is open already.
        """
        self._window.start()

    def stop(self) -> Measurement:
        """End the window and tell what the process tree spent in it.

        A process that has ended meanwhile is charged what was last seen of it.

        Raises:
            UsageError: no window is open.
        """
        return self._window.stop()

    def read(self) -> Measurement:
        """What the process tree has spent since the window was opened; the window stays open.

        Raises:
            UsageError: no window is open.
        """
        return self._window.so_far()


def energy_of_cpu_time(cpu_s: float) -> Energy:
    """Joules that `cpu_s` CPU-seconds cost on this machine's processor, by the CPU-time model.

    Proportional to `cpu_s`, estimated, with a band over all models that apply, or by the machine's
    own power curve if it has been calibrated; see `negawatt.meter.cputime`.

    Raises:
        UsageError: `cpu_s` is negative or not a number.
    """
    if not 0 <= cpu_s < float("inf"):
        raise UsageError(f"CPU time is a number of seconds from 0 up, not {cpu_s}")
    return power_here()[0].energy(cpu_s)
