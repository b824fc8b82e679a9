"""Measuring a command: run it with everything it starts, and stay out of its way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from negawatt.errors import NegawattError
from negawatt.meter.markers import Markers
from negawatt.meter.measurement import Measurement
from negawatt.meter.meter import Window
from negawatt.meter.process import Children, descendants, running
from negawatt.meter.reader import JOB_VARIABLE, job, local_rank
from negawatt.meter.station import Station

_PASSED_ON = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_SI_KERNEL = 0x80


class CommandNotRun(NegawattError):
    """The command could not be started; the exit code is the one a shell would give."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Follower:
    """Whoever wants to see a command's window while it is open; these do nothing.

    What they raise is noted in the measurement and keeps nobody else from their work.
    """

    def begin(self, window: Window, command: Sequence[str]) -> None:
        """The window is open and the command is about to start."""

    def look(self, window: Window) -> None:
        """Some time has passed: a tenth of a second, more when looking costs more than a little."""

    def end(self, measurement: Measurement) -> Sequence[str]:
        """The command has ended and its window is closed; return warnings."""
        return ()


def measure_command(
    command: Sequence[str],
    *,
    output_to_stderr: bool = False,
    station: Callable[[], Station] | None = None,
    followers: Sequence[Follower] = (),
) -> tuple[int, Measurement]:
    """Run `command` to its end; return its exit code and what it spent.

    Standard input, output and error are the caller's own. Signals sent to this process are passed
    on. Children count whether they were waited for, abandoned or turned into daemons; those that
    outlive the command count up to its end, and a warning says so. The command may name its stages
    (`negawatt.meter.markers`).

    Args:
        command: program and arguments; no shell is involved.
        output_to_stderr: send the command's standard output to standard error.
        station: makes the sensors to use; by default all that can be trusted here.
        followers: are shown the window while it is open.

    Returns:
        The exit code (128 + N if signal N ended the command, as shells say it) and the measurement.

    Raises:
        CommandNotRun: there is no such program, or it may not be executed.
    """
    with adopting_orphans():
        return _measured(command, output_to_stderr, station, followers)


def _measured(
    command: Sequence[str],
    output_to_stderr: bool,
    station: Callable[[], Station] | None,
    followers: Sequence[Follower],
) -> tuple[int, Measurement]:
    watched = {signal.SIGCHLD, *_PASSED_ON}
    # Blocked rather than handled: they are picked up one at a time below, and the command itself
    # starts with the caller's own mask. Sensors are opened after it, as their threads inherit it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        window = Window(Children(), station() if station is not None else None)
        window.start()
        watching = _Watching(window, followers)
        try:
            watching.begin(command)
            pid = _spawn(command, output_to_stderr, mask, watching.environment)
            status = _wait(pid, watching.look, watched)
        finally:
            watching.end_stages()
        measurement = window.stop()
        warnings = watching.end(measurement)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if left := running(descendants(os.getpid())):
        note = f"the command left {len(left)} running behind it (counted up to its end)"
        measurement = measurement.with_warning(note)
    for sentence in warnings:
        measurement = measurement.with_warning(sentence)
    code = os.waitstatus_to_exitcode(status)
    return (code if code >= 0 else 128 - code), measurement


class _Watching:
    """The command's own marks and all followers, none of whom may get in the way of the others."""

    def __init__(self, window: Window, followers: Sequence[Follower]) -> None:
        self._window, self._followers = window, followers
        self._warnings: list[str] = []
        self._markers: Markers | None = None
        self.environment: Mapping[str, str] = os.environ

    def begin(self, command: Sequence[str]) -> None:
        with self._noted("stages"):
            self._markers = Markers(self._window.ledger)
            self.environment = {**os.environ, **self._markers.environment}
        if local_rank() is not None:
            self.environment = {**self.environment, JOB_VARIABLE: job()}
        for follower in self._followers:
            with self._noted(type(follower).__name__):
                follower.begin(self._window, command)

    def look(self) -> None:
        self._window.look()
        for follower in self._followers:
            with self._noted(type(follower).__name__):
                follower.look(self._window)

    def end_stages(self) -> None:
        if self._markers is not None:
            with self._noted("stages"):
                self._warnings += self._markers.finish()

    def end(self, measurement: Measurement) -> list[str]:
        for follower in self._followers:
            with self._noted(type(follower).__name__):
                self._warnings += follower.end(measurement)
        return list(dict.fromkeys(self._warnings))

    @contextmanager
    def _noted(self, who: str) -> Iterator[None]:
        try:
            yield
        except Exception as exc:  # noqa: BLE001  (the measured job never fails because of the meter)
            self._warnings.append(f"{who}: {exc}")


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Meanwhile, let orphaned descendants become children of this process, so that none is lost from sight.

    Not for longer: whoever calls this does not wait for children that it never had.
    """
    if sys.platform != "linux":
        yield
        return
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def _spawn(
    command: Sequence[str],
    output_to_stderr: bool,
    mask: set[int | signal.Signals],
    environment: Mapping[str, str],
) -> int:
    sys.stdout.flush()
    actions = [(os.POSIX_SPAWN_DUP2, 2, 1)] if output_to_stderr else []
    try:
        return os.posix_spawnp(
            command[0],
            list(command),
            environment,
            file_actions=actions,
            setsigmask=mask,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these; commands expect them
        )
    except PermissionError as exc:
        raise CommandNotRun(f"{command[0]} may not be executed: permission denied", 126) from exc
    except OSError as exc:
        if isinstance(exc, FileNotFoundError):
            raise CommandNotRun(f"there is no command {command[0]}", 127) from exc
        raise CommandNotRun(f"{command[0]} cannot be executed: {exc.strerror}", 126) from exc


def _wait(pid: int, look: Callable[[], None], watched: set[signal.Signals]) -> int:
    """Reap whatever ends until the command itself does; return its wait status.

    Looks at the tree now and then, never using more than half a percent of a core for it: a
    child that nobody waits for leaves no trace of its CPU time once it is gone.
    """
    pause_s = 0.1
    while True:
        received = signal.sigtimedwait(watched, pause_s)
        if received is not None and received.si_signo in _PASSED_ON:
            # What the terminal sends goes to the whole group: the command has it already.
            if received.si_code != _SI_KERNEL:
                os.kill(pid, received.si_signo)
            continue
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == pid:
                return status
            if ended == 0:
                break
        begun = time.process_time()
        look()
        pause_s = max(0.1, 200 * (time.process_time() - begun))
