"""`Exporter`: one way to hand samples on, and `Outlet`, which keeps exporters from getting in the way."""

from __future__ import annotations

import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from negawatt.errors import NegawattError
from negawatt.monitor.sample import Sample

_MOST_WAITING = 600
_FAILING_S = 0.3


class ExportError(NegawattError):
    """Samples could not be handed on; what is measured goes on regardless."""


class Exporter(ABC):
    """Hands samples on. Every method is called by one and the same thread, `instant` exports aside.

    Attributes:
        name: what it is called in a sentence about it.
        instant: whether `export` only takes note of the sample; it is then called at once, by
            whoever has the sample, and spares both a thread's waking up.
    """

    name: str
    instant: bool = False

    def open(self) -> None:  # noqa: B027  (not all have something to open)
        """Make ready: import libraries, bind ports, open files.

        Raises:
            ExportError: it cannot be.
        """

    @abstractmethod
    def export(self, sample: Sample) -> None:
        """Hand one sample on.

        Raises:
            ExportError: it could not be; the next one may succeed.
        """

    def close(self) -> None:  # noqa: B027
        """Hand on what is still kept back, and free everything.

        Raises:
            ExportError: something was kept back and could not be handed on.
        """


class Outlet:
    """Runs each exporter in a thread of its own, behind a queue.

    `export` returns at once, whatever the exporters do. One that fails is warned about in one
    sentence, the first time; it is given every following sample, and samples that it is too slow
    for are dropped, oldest first.

    Args:
        exporters: where samples go.
        warn: called with the sentence, from the exporter's thread.
    """

    def __init__(self, exporters: Sequence[Exporter], warn: Callable[[str], None]) -> None:
        self._lanes = [_Lane(exporter, warn) for exporter in exporters]

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def export(self, sample: Sample) -> None:
        for lane in self._lanes:
            lane.put(sample)

    def close(self, deadline_s: float = 2.0) -> None:
        """Let the exporters finish, those that failed last for a moment only, and leave them then."""
        for lane in self._lanes:
            lane.finish()
        end_s = time.monotonic() + deadline_s
        for lane in self._lanes:
            lane.wait(end_s)

    def __enter__(self) -> Outlet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Lane:
    def __init__(self, exporter: Exporter, warn: Callable[[str], None]) -> None:
        self._exporter, self._warn = exporter, warn
        self._queue: queue.Queue[Sample | None] = queue.Queue(_MOST_WAITING)
        self._warned = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=f"negawatt-{exporter.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, sample: Sample | None) -> None:
        if sample is not None and self._exporter.instant:
            self._exporter.export(sample)
            return
        while True:
            try:
                self._queue.put_nowait(sample)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue

    def finish(self) -> None:
        self.put(None)

    def wait(self, end_s: float) -> None:
        patience_s = end_s - time.monotonic()
        self._thread.join(max(0.0, min(patience_s, _FAILING_S) if self._failing else patience_s))
        if self._thread.is_alive():
            self._tell(f"{self._exporter.name}: did not finish in time; what it still held is lost")

    def _run(self) -> None:
        # Signals are the main thread's business: it passes them on to the measured command.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if not self._tried(self._exporter.open):
            return
        while (sample := self._queue.get()) is not None:
            self._tried(lambda sample=sample: self._exporter.export(sample))  # type: ignore[misc]
        self._tried(self._exporter.close)

    def _tried(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except NegawattError as exc:
            self._tell(f"{self._exporter.name}: {exc}")
        except Exception as exc:  # noqa: BLE001  (a fault in a library must not end the measurement)
            self._tell(f"{self._exporter.name}: {type(exc).__name__}: {exc}")
        else:
            self._failing = False
            return True
        return False

    def _tell(self, sentence: str) -> None:
        self._failing = True
        if not self._warned:
            self._warned = True
            self._warn(" ".join(sentence.split()))
