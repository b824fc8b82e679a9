"""`Load`: keeps a chosen share of this machine's processors busy with a chosen kind of work.

Power depends on what a processor does as well as on how much, so there are several kinds of work.
Each is done in short pieces by library calls that release the interpreter's lock, so threads of
this very process are enough, and none outlives it.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from types import TracebackType

import numpy as np

PERIOD_S = 0.05
"""A thread that is to be busy for a share of the time works and rests once in this long."""

Piece = Callable[[], object]
"""A millisecond or so of work."""


def _compress(_: int) -> Piece:
    text = np.random.default_rng(0).integers(97, 105, 50_000, np.uint8).tobytes()
    return lambda: zlib.compress(text, 1)


def _sort(_: int) -> Piece:
    numbers = np.random.default_rng(0).random(20_000)
    return lambda: np.sort(numbers)


def _float(_: int) -> Piece:
    numbers = np.linspace(0.0, 1.0, 30_000)
    into = np.empty_like(numbers)
    return lambda: np.exp(numbers, out=into)


def _matmul(_: int) -> Piece:
    # So small that BLAS does not spread them over threads of its own.
    left = np.random.default_rng(0).random((200, 60, 60), np.float32)
    into = np.empty_like(left)
    return lambda: np.matmul(left, left, out=into)


def _copy(threads: int) -> Piece:
    # All threads together go through 256 MB, which most caches do not hold, 4 MB at a time.
    slices = max(2, 32 // threads)
    source = np.ones((slices, 2**19))
    target = np.empty_like(source)
    turn = iter(range(2**62))

    def piece() -> None:
        n = next(turn) % slices
        np.copyto(target[n], source[n])

    return piece


WORK: dict[str, Callable[[int], Piece]] = {
    "compress": _compress,  # whole numbers and branches
    "sort": _sort,  # branches that are hard to foresee
    "float": _float,  # transcendental functions, out of the nearest cache
    "matmul": _matmul,  # vector or matrix units at their full width
    "copy": _copy,  # memory
}
"""Kinds of work: each makes, for one of so many threads, the piece that is repeated."""


class Load:
    """Threads that wait to be told what to do; they end with the block.

    Args:
        threads: as many as there are processors to keep busy.
    """

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._work = ""
        self._busy = 0.0
        self._over = False
        self._threads = [
            threading.Thread(target=self._run, args=(place,), name=f"negawatt-load-{place}", daemon=True)
            for place in range(threads)
        ]

    def set(self, work: str, level: float) -> None:
        """Do this kind of work on a share `level` (0 to 1) of the processors' time from now on."""
        with self._changed:
            self._work, self._busy = work, level * len(self._threads)
            self._changed.notify_all()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _duty(self, place: int) -> float:
        """The share of its time that a thread is to be busy: the first ones fully, then one in part."""
        return min(1.0, max(0.0, self._busy - place))

    def _run(self, place: int) -> None:
        pieces: dict[str, Piece] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._duty(place) > 0)
                if self._over:
                    return
                work, duty = self._work, self._duty(place)
            if work not in pieces:
                pieces[work] = WORK[work](len(self._threads))
            begun_s, used_s = time.monotonic(), time.thread_time()
            while time.thread_time() - used_s < duty * PERIOD_S and time.monotonic() - begun_s < PERIOD_S:
                pieces[work]()
            if duty < 1:
                time.sleep(max(0.0, PERIOD_S - (time.monotonic() - begun_s)))
