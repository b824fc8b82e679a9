"""`taken`: one process of this machine at a time sets limits, and first puts back what a dead one left."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from negawatt.errors import EngineError, SensorError
from negawatt.limits.journal import Change, Journal
from negawatt.limits.system import System

ROUNDING = 0.01
"""By which what was read before may differ from what is read once it is written again."""
TRIES = 3
"""Times that a value is put back when Ctrl-C comes in between."""


class InForce(EngineError):
    """Another process's limits are."""


def taken(system: System, journal: Journal, patience_s: float = 0.0) -> int:
    """The descriptor of a lock: whoever has it is the one process of this machine that sets limits.

    It is on the folder that the limits are in, so it does not matter whose home the journal is in; the kernel
    frees it when the process ends, however it ends.

    Raises:
        InForce: another process has it.
        EngineError: there is no such folder.
    """
    try:
        lock = os.open(system.root / "sys", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise EngineError(f"this system shows no limits under {system.root / 'sys'}") from exc
    end = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise _in_force(journal) from None
                time.sleep(0.02)
    except BaseException:
        os.close(lock)
        raise


def _in_force(journal: Journal) -> InForce:
    who = "another process"
    with suppress(EngineError):
        if (entry := journal.read()) is not None and entry.is_anothers:
            who = f"process {entry.pid}"
    return InForce(
        f"{who} has set a power cap or clock, which holds for the whole machine; wait until it ends"
    )


def put_back(
    system: System | None = None, journal: Journal | None = None, patience_s: float = 0.0
) -> list[str]:
    """Put back what a process has left lowered that has ended; in words, what was.

    Args:
        patience_s: so long is waited for the lock.

    Raises:
        InForce: limits are in force, of this process or another.
        EngineError: the journal is damaged, or a value cannot be put back.
    """
    system, journal = system or System(), journal or Journal()
    if not journal.place.exists():
        return []
    lock = taken(system, journal, patience_s)
    try:
        return recovered(system, journal)
    finally:
        os.close(lock)


def recovered(system: System, journal: Journal) -> list[str]:
    """As `put_back`, by whoever has the lock."""
    if (entry := journal.read()) is None:
        return []
    if entry.is_anothers:
        raise _in_force(journal)
    told = []
    if entry.lasts:
        undo(system, entry.changes)
        places = ", ".join(change.place for change in entry.changes)
        told.append(
            f"process {entry.pid} ended without putting back what it had lowered; that is done now: {places}"
        )
    journal.remove()
    return told


def undo(system: System, changes: Sequence[Change]) -> None:
    """Put back what was there, the latest change first; every one is tried.

    Raises:
        EngineError: some could not be put back.
        KeyboardInterrupt: came in between; all the same every one was tried.
    """
    failures: list[str] = []
    interrupted: KeyboardInterrupt | None = None
    for change in reversed(changes):
        for _ in range(TRIES):
            try:
                _undo(system, change)
            except KeyboardInterrupt as exc:
                interrupted = exc
                continue
            except SensorError as exc:
                failures.append(str(exc))
            break
    if failures:
        raise EngineError(f"a limit could not be put back, so do it by hand: {'; '.join(failures)}")
    if interrupted is not None:
        raise interrupted


def _undo(system: System, change: Change) -> None:
    try:
        system.write(change.place, change.before)
    except SensorError:
        if change.before is None or system.read(change.place) != change.before:
            raise
    stands = system.read(change.place)
    if stands is not None and change.before is not None and abs(stands - change.before) > ROUNDING * stands:
        raise SensorError(
            f"{change.place} was put back to {change.before}, and the system made {stands} of it"
        )
