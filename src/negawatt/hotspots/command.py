"""Hot-spots of a command: every Python process in it samples itself and leaves what it found in a folder."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from negawatt.errors import require
from negawatt.hotspots.hotspots import Hotspots
from negawatt.hotspots.process import FOLDER, OURS, read
from negawatt.hotspots.tally import Key, Tally
from negawatt.meter import Station
from negawatt.meter.command import measure_command


def of_command(
    command: Sequence[str], *, output_to_stderr: bool = False, station: Callable[[], Station] | None = None
) -> tuple[int, Hotspots]:
    """Run `command` to its end; return its exit code and what its Python functions spent.

    Every Python process that the command is, starts or forks is sampled, as long as it is of this
    version of Python. Everything else is a part of its own: Python's start, processes that are no
    Python, processes that were killed.

    Args:
        command, output_to_stderr, station: see `negawatt.meter.command.measure_command`.

    Raises:
        MissingDependency: pyinstrument is not installed.
        CommandNotRun: there is no such program, or it may not be executed.
    """
    require("pyinstrument.stack_sampler", extra="hotspots")
    with tempfile.TemporaryDirectory(prefix="negawatt-hotspots-") as folder:
        with _environment(Path(folder)):
            code, measurement = measure_command(command, output_to_stderr=output_to_stderr, station=station)
        found = [read(path) for path in sorted(Path(folder).glob("*.json"))]
    whole = Tally(Key("all", "whole"))
    for process in found:
        whole.merge(process.tally)
    whole.add([Key("not sampled", "rest")], max(0.0, measurement.cpu_s - whole.total_cpu_s()), 0)
    notes = []
    if not found:
        notes.append(
            "no process was sampled: none was Python, or it was another version of it, "
            "isolated (-I, -E, -S), or killed"
        )
    elif len(found) > 1:
        notes.append(f"{len(found)} Python processes were sampled; their functions are shown together")
    hotspots = Hotspots.share(
        shlex.join(command),
        whole,
        measurement,
        samples=sum(process.samples for process in found),
        looking_cpu_s=sum(process.looking_cpu_s for process in found),
        notes=tuple(notes),
    )
    return code, hotspots


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """The environment for the command, taken back afterwards: it is this process's own."""
    inject = str(Path(__file__).with_name("inject"))
    theirs = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    new = {
        "PYTHONPATH": os.pathsep.join([inject, *theirs]),
        OURS: os.pathsep.join(dict.fromkeys(map(_parent_of, ("negawatt", "pyinstrument")))),
        FOLDER: str(folder),
    }
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _parent_of(package: str) -> str:
    """The folder that a package is imported from."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent.parent)
