"""`WorkerProcess`: the process in which an engine's library lives, and the pipe to it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO, Any

from numpy.typing import NDArray

from negawatt import errors
from negawatt.engine import wire
from negawatt.engine.decode import TokenCallback
from negawatt.engine.host import cpu_s_of, has_ended, last_line, worker_environment
from negawatt.errors import EngineError, NegawattError, WorkerDied


class WorkerProcess:
    """A process of `negawatt.engine.worker`, which can be started again after it was closed.

    Args:
        engine: name of the engine, for sentences.

    Attributes:
        whole_cpu_s: CPU seconds of the process in all, once it has ended; None before, and where the system
            does not tell.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self.whole_cpu_s: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    # -- life ------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Its process id, until it is closed."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it.

        Raises:
            OSError: the system does not let us.
        """
        to_worker_read, to_worker_write = os.pipe()
        from_worker_read, from_worker_write = os.pipe()
        self.whole_cpu_s = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        ends = map(str, (to_worker_read, from_worker_write))
        command = [sys.executable, "-m", "negawatt.engine.worker", *ends]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(to_worker_read, from_worker_write),
                start_new_session=True,  # Ctrl-C is for the parent, which closes the worker in order
                env=worker_environment(),
            )
        finally:
            os.close(to_worker_read)
            os.close(from_worker_write)
        self._writer = os.fdopen(to_worker_write, "wb")
        self._reader = os.fdopen(from_worker_read, "rb", buffering=0)

    def close(self) -> None:
        """End it and free its memory; harmless when it has ended already."""
        if self._process is None:
            return
        for stream in (self._writer, self._reader):
            with suppress(BrokenPipeError):  # the worker ended first; nothing unsent matters now
                stream.close()
        self._end(2.0)
        if self._log is not None:
            self._log.close()
        self._process = None

    def _end(self, most_s: float) -> int:
        """Wait for it to end, kill it if it does not, and note what it spent; its exit code."""
        assert self._process is not None
        end = time.monotonic() + most_s
        while not has_ended(self._process):
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.002)
        if self._process.returncode is None:  # known until it is waited for
            self.whole_cpu_s = cpu_s_of(self._process.pid)
        return self._process.wait()

    def kill(self) -> None:
        """End it at once, whatever it is doing; its streams then end."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)  # Popen's own would wait for one that has ended

    # -- talking ---------------------------------------------------------------------------------

    def hand_over(self, message: wire.Message) -> tuple[IO[bytes], IO[bytes]]:
        """Send a last message that is not answered; the streams to read from and write to then."""
        wire.send(self._writer, message)
        return self._reader, self._writer

    def call(
        self, message: wire.Message, deadline_s: float, on_token: TokenCallback | None = None
    ) -> tuple[wire.Message, list[NDArray[Any]]]:
        """Ask it, and wait for the answer.

        Args:
            deadline_s: from its last sign of life.
            on_token: called as tokens are told before the answer.

        Raises:
            NegawattError: what it raised.
            EngineError: it was not started.
            WorkerDied: it died or hung; it is then closed.
        """
        if self._process is None:
            raise EngineError("the engine is not open")
        try:
            wire.send(self._writer, message)
            while True:
                self._wait_readable(deadline_s, str(message["do"]))
                frame = wire.receive(self._reader)
                if frame is None:
                    raise self.why_died()
                answer, arrays = frame
                if "token" not in answer:
                    break
                if on_token is not None:
                    on_token(*answer["token"])
        except (BrokenPipeError, EOFError, ValueError) as exc:
            raise self.why_died() from exc
        if "error" in answer:
            kind = getattr(errors, answer["kind"], EngineError)
            raise kind(answer["error"])
        return answer, arrays

    def _wait_readable(self, deadline_s: float, what: str) -> None:
        end = time.monotonic() + deadline_s
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, min(1.0, end - time.monotonic())))
            if ready:
                return
            if time.monotonic() >= end:
                self.kill()
                self.close()
                raise WorkerDied(f"the {self._engine} worker gave no answer to {what} in {deadline_s:g} s")

    def why_died(self) -> NegawattError:
        """Why it ended, as an error to raise; it is closed."""
        assert self._process is not None
        code = self._end(5.0)
        said = "" if self._log is None else last_line(self._log)
        self.close()
        if code == -signal.SIGKILL:
            reason = "was killed, most likely because memory ran out"
        elif code < 0:
            reason = f"died of {signal.Signals(-code).name} ({signal.strsignal(-code)})"
        else:
            reason = f"ended with code {code}"
        return WorkerDied(f"the {self._engine} worker {reason}" + (f": {said}" if said else ""))
