"""A Python process that samples itself from its start to its end and leaves a file; and reading that file.

This is what ``inject/sitecustomize.py`` starts in a process that is not ours, so it imports little.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from negawatt.hotspots.sampler import SAMPLING, Sampler
from negawatt.hotspots.tally import Key, Tally

FOLDER = "NEGAWATT_HOTSPOTS"
"""Environment variable: the folder to leave samples in."""
OURS = "NEGAWATT_HOTSPOTS_PATH"
"""Environment variable: where Negawatt and pyinstrument are, for a Python that has them not."""

STARTING = Key("starting Python", "rest")
"""What a process used before its sampler began, the sampler's own imports included."""


@dataclass(frozen=True)
class Sampled:
    """What one process left: its tally, how many samples, and what taking them cost."""

    tally: Tally
    samples: int
    looking_cpu_s: float


def sample_this_process() -> None:
    """Sample from now until the process ends; a fork's child does the same for itself."""
    os._exit = _leaving(os._exit)  # type: ignore[assignment]  # how workers of multiprocessing end: without atexit
    atexit.register(lambda: _leave())
    os.register_at_fork(after_in_child=_begin)
    _begin()


_now: tuple[Sampler, Path] | None = None
"""The sampler of this process and the file it will leave; None once it has left it."""


def _begin() -> None:
    global _now
    if _now is not None:
        _now[0].abandon()  # the parent's, copied by the fork
    sampler = Sampler()
    _now = (sampler, Path(os.environ[FOLDER]) / f"{os.getpid()}-{time.monotonic_ns()}.json")
    sampler.start()


def _leave() -> None:
    global _now
    if _now is None:
        return
    (sampler, target), _now = _now, None
    sampler.stop()
    document = {
        "before_cpu_s": sampler.before_cpu_s,
        "looking_cpu_s": sampler.looking_cpu_s,
        "stacks": sampler.stacks(),
    }
    try:
        beside = target.with_suffix(".part")
        beside.write_text(json.dumps(document), "utf-8")
        beside.replace(target)
    except OSError:
        pass  # a full disk leaves this process unsampled; it is none of its own business


def _leaving(exit_now: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
    def leave_and_exit(status: int) -> NoReturn:
        _leave()
        exit_now(status)

    return leave_and_exit


def read(path: Path) -> Sampled:
    """What a process left in `path`."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    tally = Tally(Key("all", "whole"))
    samples = 0
    for stack, cpu_s, count in document["stacks"]:
        tally.add([Key(*frame) for frame in stack], cpu_s, count)
        samples += count
    tally.add([STARTING], document["before_cpu_s"], 0)
    looking_s = document["looking_cpu_s"]
    tally.add([SAMPLING], looking_s, samples)
    return Sampled(tally, samples, looking_s)
