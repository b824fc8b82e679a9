"""`hold`: keep limits for as long as an engine runs.

A limit holds for the whole machine. So one process at a time sets some, all engines in it run under the same,
and what stood there before is put back however it ends: in order, by an exception, or killed (see
`negawatt.limits.keeper`), and where all of that fails by the next process that looks (see
`negawatt.limits.turn`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from negawatt.errors import EngineError, SensorError
from negawatt.home import home
from negawatt.limits.journal import Change, Entry, Journal
from negawatt.limits.limits import Limits, Plan, planned, refused
from negawatt.limits.system import System
from negawatt.limits.turn import recovered, taken, undo


class Hold:
    """Limits as `hold` keeps them; a context manager.

    Args:
        plan: what is in force; empty without limits.
        pid: the process that holds them; None of nothing, which is released already.
        in_turn: as `hold_in_turn` keeps them.
    """

    def __init__(self, plan: Plan | None = None, pid: int | None = None, *, in_turn: bool = False) -> None:
        self._plan, self._pid, self._in_turn = plan or Plan(), pid, in_turn

    @property
    def window_s(self) -> float:
        """The limits hold on average over so many seconds; 0 where they always hold."""
        return self._plan.window_s

    @property
    def info(self) -> dict[str, Any]:
        """For the record of what really ran: ``limits``, in words, and the seconds ``limits_window_s`` over
        which they hold on average; nothing without any."""
        told, window_s = list(self._plan.told), self._plan.window_s
        return {"limits": told, "limits_window_s": window_s} if told else {}

    def release(self) -> None:
        """Put back what stood before, unless another engine of this process still needs the limits.

        Harmless when it is done.

        Raises:
            EngineError: something could not be put back.
        """
        pid, self._pid = self._pid, None
        if pid == os.getpid():
            _register.end_turn() if self._in_turn else _register.leave()

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(limits: Limits, system: System | None = None, journal: Journal | None = None) -> Hold:
    """Lower the machine's ceilings until it is released.

    Args:
        limits: none is fine, and says that whoever holds it runs without.

    Raises:
        EngineError: the system does not permit it or makes something else of it, another process has set
            limits, or another engine of this process runs under other ones. Then nothing is changed.
    """
    return Hold(_register.enter(limits, system, journal), os.getpid())


def hold_in_turn(limits: Limits, system: System | None = None, journal: Journal | None = None) -> Hold:
    """As `hold`, for a while in which every other engine of this process is idle: to measure in turn.

    Engines that are open run without limits before and after. None can be opened meanwhile.

    Raises:
        EngineError: as `hold`, or engines of this process hold limits themselves.
    """
    return Hold(_register.begin_turn(limits, system, journal), os.getpid(), in_turn=True)


def check(limits: Limits, system: System | None = None, journal: Journal | None = None) -> None:
    """Whether `hold` would do; nothing is changed, but for what a dead process has left lowered.

    Raises:
        EngineError: as `hold`.
    """
    _register.refuse_others(limits)
    if limits and not _register.holds(limits):
        system, journal = system or System(), journal or Journal()
        lock = taken(system, journal)
        try:
            recovered(system, journal)
            planned(limits, system)
        finally:
            os.close(lock)


class _Register:
    """The engines of this process, which all run under the same limits."""

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self._users, self._limits = 0, Limits()
        self._active: _Active | None = None
        self._in_turn = False

    def enter(self, limits: Limits, system: System | None, journal: Journal | None) -> Plan | None:
        with self._guard:
            self.refuse_others(limits)
            if limits and self._active is None:
                self._active = _Active(limits, system or System(), journal or Journal())
            self._users, self._limits = self._users + 1, limits
            return self._active.plan if self._active is not None else None

    def refuse_others(self, limits: Limits) -> None:
        """
        Raises:
            EngineError: engines of this process run under other limits than these.
        """
        if self._in_turn or (self._users and (self._limits or limits) and self._limits != limits):
            raise EngineError(
                f"a limit holds for the whole machine, and another engine of this process runs with "
                f"{self._limits}, not with {limits}; run one after the other"
            )

    def holds(self, limits: Limits) -> bool:
        """Whether these, and no others, are in force already."""
        return self._active is not None and self._limits == limits

    def leave(self) -> None:
        with self._guard:
            self._users -= 1
            if self._users == 0 and self._active is not None:
                active, self._active = self._active, None
                active.end()

    def begin_turn(self, limits: Limits, system: System | None, journal: Journal | None) -> Plan:
        with self._guard:
            if self._active is not None:
                raise EngineError(
                    f"a limit holds for the whole machine, and this process holds {self._limits} already"
                )
            self._active = _Active(limits, system or System(), journal or Journal())
            self._limits, self._in_turn = limits, True
            return self._active.plan

    def end_turn(self) -> None:
        with self._guard:
            active, self._active = self._active, None
            self._limits, self._in_turn = Limits(), False
            if active is not None:
                active.end()

    def begin_anew(self) -> None:
        """In a forked child: limits and engines are the parent's."""
        active, self._active = self._active, None
        self._guard, self._users, self._limits = threading.RLock(), 0, Limits()
        self._in_turn = False
        if active is not None:
            active.let_go()


class _Active:
    """Limits that this process has put in force."""

    def __init__(self, limits: Limits, system: System, journal: Journal) -> None:
        self._system, self._journal = system, journal
        self._keeper: subprocess.Popen[bytes] | None = None
        self._made: list[Change] = []
        self._written = False
        self._lock = taken(system, journal)
        try:
            recovered(system, journal)
            self.plan = plan = planned(limits, system)
            self._written = True
            journal.write(Entry.of_this_process(plan.changes))
            self._keeper = _keeper(system.root, journal)
            for change, step in zip(plan.changes, plan.steps, strict=True):
                self._make(change, step)
        except BaseException:
            self.end()
            raise

    def _make(self, change: Change, step: int) -> None:
        self._made.append(change)
        try:
            self._system.write(change.place, change.after)
        except SensorError as exc:
            with suppress(SensorError):
                if self._system.read(change.place) in (change.before, None):
                    self._made.remove(change)
            raise refused(exc) from exc
        try:
            stands = self._system.read(change.place)
        except SensorError as exc:
            raise refused(exc) from exc
        if stands is not None and abs(stands - change.after) > step:
            raise EngineError(
                f"{change.place} was set to {change.after}, and the system made {stands} of it; "
                "ask for a limit that it keeps"
            )

    def end(self) -> None:
        """Put everything back.

        Raises:
            EngineError: something could not be; the journal stays, so that the next process tries again.
            KeyboardInterrupt: came in between; everything was put back.
        """
        interrupted: KeyboardInterrupt | None = None
        try:
            try:
                undo(self._system, self._made)
            except KeyboardInterrupt as exc:
                interrupted = exc
            if self._written:
                self._journal.remove()
        finally:
            if self._keeper is not None:
                self._keeper.kill()
                self._keeper.wait()
            self.let_go()
        if interrupted is not None:
            raise interrupted

    def let_go(self) -> None:
        """Close the lock, and the end of the pipe that the keeper watches."""
        with suppress(OSError):
            os.close(self._lock)
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()


def _keeper(root: Path, journal: Journal) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "negawatt.limits.keeper", str(root), str(journal.place)]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "NEGAWATT_HOME": str(home())},
        )  # fmt: skip
    except OSError as exc:
        raise EngineError(f"cannot start what would put limits back: {exc.strerror or exc}") from exc


_register = _Register()
os.register_at_fork(after_in_child=_register.begin_anew)
