"""What a worker gets of the machine it runs on, and takes: its environment, free memory, its peak."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO


def worker_environment() -> dict[str, str]:
    """The parent's environment, with every hub and telemetry switched off."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **quiet}


def available_memory_bytes() -> int | None:
    """Bytes that can be used without swapping, or None where the kernel does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def peak_rss_bytes() -> int:
    """Most memory this process held since it began; ``getrusage`` would count its parent's too."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended. Where the system can, it is not waited for, so `cpu_s_of` still knows it."""
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def cpu_s_of(pid: int) -> float | None:
    """CPU seconds of a process, all threads, also after it has ended while nobody has waited for it.

    None where the system does not tell. Linux's clock of a process: see clock_getcpuclockid(3).
    """
    if sys.platform != "linux":
        return None
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def last_line(log: IO[bytes]) -> str:
    """What a worker said last, of its output so far; empty where it said nothing."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
