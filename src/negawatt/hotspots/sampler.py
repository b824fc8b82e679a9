"""`Sampler`: which Python functions use this process's CPU time, by pyinstrument's stack samples.

pyinstrument takes a stack every few milliseconds of wall time. Here each stack is charged the CPU
seconds since the last one, read from the kernel's own clocks: waiting costs nothing, and what helper
threads without Python in them used (OpenMP, BLAS) goes to the Python function that was running.
So the charges add up to the CPU time of the process exactly, whatever the samples missed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from types import FrameType
from typing import Any

from negawatt.errors import require
from negawatt.hotspots.tally import Key, Tally

INTERVAL_S = 0.004
"""Time between samples. The kernel's coarse clock, which costs next to nothing to read, has this step."""

SAMPLING = Key("taking samples", "rest")


class Sampler:
    """Samples the thread that starts it, and every Python thread started while it runs.

    A fork's child goes on with a sampler of its own where whoever made this one arranges for it.
    """

    def __init__(self) -> None:
        self.looking_cpu_s = 0.0
        self.samples = 0
        self.before_cpu_s = time.process_time()
        self._stacks: dict[tuple[str, ...], list[float]] = {}
        # Reentrant: a sample may be due on the very thread that holds it, as it is let go.
        self._lock = threading.RLock()
        self._threads: dict[int, float] = {}
        self._charged_s = self.before_cpu_s
        self._running = False

    def start(self) -> None:
        """Begin.

        Raises:
            MissingDependency: pyinstrument is not installed.
        """
        self._sampler = require("pyinstrument.stack_sampler", extra="hotspots")
        self._running = True
        self._charged_s = self.before_cpu_s = time.process_time()
        threading.setprofile(self._first_event)
        self._subscribe()

    def stop(self) -> None:
        """End; threads that are still running leave at their next sample."""
        with self._lock:
            self._running = False
        threading.setprofile(None)
        self._unsubscribe()
        with self._lock:
            cpu_s = self._due(threading.get_native_id(), time.thread_time())
            self._stacks.setdefault((), [0.0, 0])[0] += cpu_s

    def abandon(self) -> None:
        """Forget it: for a fork's child, whose copy of the lock may be held by a thread that is gone."""
        self._running = False
        self._unsubscribe()

    def stacks(self) -> list[tuple[list[Key], float, int]]:
        """Every stack seen, outermost function first, its CPU seconds and its samples.

        With `looking_cpu_s` the seconds add up to the CPU time of the process since the start.
        """
        keys = cache(_key)
        return [
            ([key for frame in stack if (key := keys(frame))], cpu_s, int(n))
            for stack, (cpu_s, n) in self._stacks.items()
        ]

    def tally(self) -> Tally:
        """CPU seconds by stage and function, outermost first; its total is the process's CPU time."""
        root = Tally(Key("all", "whole"))
        for stack, cpu_s, samples in self.stacks():
            root.add(stack, cpu_s, samples)
        root.add([SAMPLING], self.looking_cpu_s, self.samples)
        return root

    def _subscribe(self) -> None:
        self._threads[threading.get_native_id()] = time.thread_time()
        self._sampler.get_stack_sampler().subscribe(
            self._take, desired_interval=INTERVAL_S, use_async_context=False
        )

    def _unsubscribe(self) -> None:
        sampler = self._sampler.get_stack_sampler()
        if any(s.target == self._take for s in sampler.subscribers):
            sampler.unsubscribe(self._take)

    def _first_event(self, frame: FrameType, event: str, argument: Any) -> None:
        """The first thing that happens in a new thread: from here on pyinstrument watches it."""
        sys.setprofile(None)
        if self._running:
            self._subscribe()

    def _take(self, stack: Sequence[str], since_last_s: float, state: Any) -> None:
        """A sample: the thread, the outermost frame, …, the innermost."""
        begun_s, thread = time.thread_time(), threading.get_native_id()
        with self._lock:
            running = self._running
            if running:
                due_s = self._due(thread, begun_s)
                frames = (*(f"{name}\0\0stage" for name in _stages()), *stack[1:])
                charge = self._stacks.setdefault(frames, [0.0, 0])
                charge[0] += due_s
                charge[1] += 1
                self.samples += 1
                looked_s = time.thread_time() - begun_s
                self.looking_cpu_s += looked_s
                self._charged_s += looked_s
                self._threads[thread] = begun_s + looked_s
        if not running:
            self._unsubscribe()

    def _due(self, thread: int, own_s: float) -> float:
        """CPU seconds not charged yet, less what other Python threads will be charged themselves.

        Args:
            thread: who asks.
            own_s: its CPU time at the sample; what it used since is the sampler's.
        """
        process_s = time.process_time() - (time.thread_time() - own_s)
        others_s = 0.0
        for other, last_s in list(self._threads.items()):
            if other != thread:
                now_s = _thread_cpu_s(other)
                if now_s == 0.0:  # it has ended: what was left of it falls to who asks next
                    del self._threads[other]
                others_s += max(0.0, now_s - last_s)
        due_s = max(0.0, process_s - self._charged_s - others_s)
        self._threads[thread] = own_s
        self._charged_s += due_s
        return due_s


# The meter's package takes a tenth of a second to import, which every sampled process would pay.


def _stages() -> tuple[str, ...]:
    """Stages that the program has named by the meter, if it uses it."""
    meter = sys.modules.get("negawatt.meter.meter")
    named = getattr(meter, "active_stages", None)  # not there yet while the module is being imported
    return named() if named is not None else ()


def _thread_cpu_s(thread: int) -> float:
    """The same as `negawatt.meter.process.thread_cpu_s`: CPU seconds of a thread; 0 once it has ended."""
    try:
        return time.clock_gettime((~thread << 3) | 6)
    except OSError:
        return 0.0


def _key(frame: str) -> Key | None:
    """``name NUL file NUL line``, perhaps with pyinstrument's marks after it, as a key."""
    name, file, line = frame.split("\x01", 1)[0].split("\0")
    if line == "stage":
        return Key(name, "stage")
    if file.startswith("<frozen importlib"):
        return None  # six frames for every import; the module that is imported stands below them
    place = shown(file)
    if name == "<module>":
        name = f"module {place.rsplit('/', 1)[-1]}"
    return Key(name, "function", f"{place}:{line}" if line != "0" else place)


def shown(file: str) -> str:
    """A file as people know it: below ``site-packages`` or ``python``, or from here."""
    for mark in ("site-packages", "dist-packages"):
        if f"/{mark}/" in file:
            return f"{mark}/{file.split(f'/{mark}/', 1)[1]}"
    library = f"/lib/python{sys.version_info[0]}.{sys.version_info[1]}/"
    if library in file:
        return f"python/{file.split(library, 1)[1]}"
    return file.removeprefix(os.getcwd() + "/")
