"""A node's part in a search: errands in processes of their own, and nothing beside a measurement."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from negawatt import __version__
from negawatt.errors import NegawattError
from negawatt.meter import energy_of_cpu_time

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Of the environment: a search's own are passed on to nodes; what a scheduler sets there is not."""


@contextmanager
def alone(*, exclusive: bool) -> Iterator[None]:
    """Measure with nothing of ours beside it on this machine, or do other work beside no measurement.

    A lock of the machine, whoever's node or search it is: held by one that measures, or shared by those
    that judge. The kernel frees it when a process ends.

    Raises:
        NegawattError: the lock cannot be made.
    """
    path = Path(tempfile.gettempdir()) / f"negawatt-measuring-{os.getuid()}.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise NegawattError(f"cannot make {path}: {exc.strerror or exc}") from exc
    try:
        if os.fstat(handle).st_uid != os.getuid() or not stat.S_ISREG(os.fstat(handle).st_mode):
            raise NegawattError(f"{path} is not ours; remove it")
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def host() -> str:
    """What processes of one machine, and of one numbering of processes on it, have in common."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def carried_out(text: str) -> str:
    """Do an errand and answer it.

    Args:
        text: JSON with ``version``, ``threads`` and ``nice`` (as the search has them), ``do``, and what that
            needs.

    Returns:
        JSON: the answer, or ``error`` and ``kind``; with ``cpu_s``, ``energy`` and ``duration_s`` of all of
        it, and ``host`` and ``ancestors``, by which a process knows what its own meter has counted already.
    """
    job = json.loads(text)
    if job["version"] != __version__:
        return json.dumps({
            "error": f"the node has Negawatt {__version__}, the search {job['version']}",
            "kind": "MissingDependency", "cpu_s": 0.0,
        })  # fmt: skip
    started = time.monotonic()
    answer, cpu_s = _run(text, job["threads"])
    answer |= {
        "cpu_s": cpu_s, "energy": energy_of_cpu_time(cpu_s).to_json(),
        "duration_s": time.monotonic() - started, "host": host(), "ancestors": _ancestors(),
    }  # fmt: skip
    return json.dumps(answer)


def _run(text: str, threads: Mapping[str, str]) -> tuple[dict[str, Any], float]:
    """The answer of a process of its own, and its CPU seconds with those of all that it started."""
    environment = {k: v for k, v in os.environ.items() if k not in THREADS}
    process = subprocess.Popen(
        [sys.executable, "-m", "negawatt.tuning.node_worker"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**environment, **threads},
        start_new_session=True,
    )  # fmt: skip
    line = b""
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it died at once; the status says of what
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()  # and left open: its end tells the process that nobody waits any more
        line = process.stdout.readline()
    except BaseException:
        process.kill()
        raise
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer, cpu_s
    code = process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return {"error": f"the process that tries candidates {how}", "kind": "WorkerDied"}, cpu_s


def _ancestors() -> list[int]:
    """Process ids from this one up, as far as they can be seen."""
    found, pid = [], os.getpid()
    while pid > 0:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
