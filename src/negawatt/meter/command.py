"""Measuring a command: run it with everything it starts, and stay out of its way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

from negawatt.errors import NegawattError
from negawatt.meter.measurement import Measurement
from negawatt.meter.meter import Window
from negawatt.meter.process import Children, descendants, running
from negawatt.meter.station import Station

_PASSED_ON = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_PR_SET_CHILD_SUBREAPER = 36
_SI_KERNEL = 0x80


class CommandNotRun(NegawattError):
    """The command could not be started; the exit code is the one a shell would give."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def measure_command(
    command: Sequence[str], *, output_to_stderr: bool = False, station: Station | None = None
) -> tuple[int, Measurement]:
    """Run `command` to its end; return its exit code and what it spent.

    Standard input, output and error are the caller's own. Signals sent to this process are passed
    on. Children count whether they were waited for, abandoned or turned into daemons; those that
    outlive the command count up to its end, and a warning says so.

    Args:
        command: program and arguments; no shell is involved.
        output_to_stderr: send the command's standard output to standard error.
        station: the sensors to use; by default all that can be trusted here.

    Returns:
        The exit code (128 + N if signal N ended the command, as shells say it) and the measurement.

    Raises:
        CommandNotRun: there is no such program, or it may not be executed.
    """
    become_subreaper()
    window = Window(Children(), station)
    watched = {signal.SIGCHLD, *_PASSED_ON}
    # Blocked rather than handled: they are picked up one at a time below, and the command itself
    # starts with the caller's own mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        window.start()
        pid = _spawn(command, output_to_stderr, mask)
        status = _wait(pid, window, watched)
        measurement = window.stop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if left := running(descendants(os.getpid())):
        note = f"the command left {len(left)} running behind it (counted up to its end)"
        measurement = measurement.with_warning(note)
    code = os.waitstatus_to_exitcode(status)
    return (code if code >= 0 else 128 - code), measurement


def become_subreaper() -> None:
    """Let orphaned descendants become children of this process, so that none is lost from sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _spawn(command: Sequence[str], output_to_stderr: bool, mask: set[int | signal.Signals]) -> int:
    sys.stdout.flush()
    actions = [(os.POSIX_SPAWN_DUP2, 2, 1)] if output_to_stderr else []
    try:
        return os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
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


def _wait(pid: int, window: Window, watched: set[signal.Signals]) -> int:
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
        window.look()
        pause_s = max(0.1, 200 * (time.process_time() - begun))
