"""What a worker gets of the machine it runs on, and takes: its environment, free memory, its peak."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path


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
