"""`Timely`: a sensor that answers in time or not at all, whatever the sensor inside it does."""

from __future__ import annotations

import os
import threading
import time

from negawatt.errors import SensorError
from negawatt.meter.sensor import Reading, Sensor, attempt


class Timely(Sensor):
    """Reads another sensor in a thread of its own and waits for it no longer than a deadline.

    While a read hangs, further ones fail at once; the late answer is dropped when it comes. Handing
    a read over costs some 10 µs. Like every sensor it is read by one thread at a time.

    Args:
        sensor: the one to read.
        deadline_s: seconds that one read may take.
    """

    def __init__(self, sensor: Sensor, deadline_s: float = 1.0) -> None:
        self.sensor, self.deadline_s = sensor, deadline_s
        self.name, self.polled_s = sensor.name, sensor.polled_s
        self._reader: _Reader | None = None

    def read(self) -> Reading:
        reader = self._reader
        if reader is None or reader.pid != os.getpid():  # a fork leaves the thread behind
            reader = self._reader = _Reader(self.sensor)
        if reader.hangs_since_s is None:
            reader.asked.release()
        if not reader.answered.acquire(timeout=0 if reader.hangs_since_s is not None else self.deadline_s):
            reader.hangs_since_s = reader.hangs_since_s or time.monotonic() - self.deadline_s
            waited_s = time.monotonic() - reader.hangs_since_s
            raise SensorError(
                f"{self.name}: no answer within {self.deadline_s:g} s ({waited_s:.0f} s by now)"
            )
        if reader.hangs_since_s is not None:  # that was the late answer; now ask again
            reader.hangs_since_s = None
            return self.read()
        if isinstance(reader.answer, SensorError):
            raise reader.answer
        return reader.answer

    @property
    def notes(self) -> tuple[str, ...]:
        return self.sensor.notes

    def close(self) -> None:
        """Close the sensor inside, unless it hangs: that would wait for it."""
        reader, self._reader = self._reader, None
        if reader is None:
            self.sensor.close()
            return
        reader.over = True
        if reader.hangs_since_s is None:
            reader.asked.release()
            self.sensor.close()


class _Reader:
    """A thread that reads when asked; the locks are used as signals."""

    def __init__(self, sensor: Sensor) -> None:
        self.pid = os.getpid()
        self.asked, self.answered = threading.Lock(), threading.Lock()
        self.asked.acquire()
        self.answered.acquire()
        self.answer: Reading | SensorError = SensorError("not read yet")
        self.hangs_since_s: float | None = None
        self.over = False
        threading.Thread(
            target=self._serve, args=(sensor,), name=f"negawatt-read-{sensor.name}", daemon=True
        ).start()

    def _serve(self, sensor: Sensor) -> None:
        while True:
            self.asked.acquire()
            if self.over:
                return
            self.answer = attempt(sensor)
            self.answered.release()
