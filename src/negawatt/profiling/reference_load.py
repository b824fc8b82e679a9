"""A small fixed load, timed between measurements: when its cost changes, the host changed.

Absolute CPU time of the same work drifts by tens of per cent on shared hosts. The load streams
memory and multiplies in registers, which is what decoding does; its CPU time before and after a
measurement tells how fast the machine was just then, and measurements taken at different times are
compared after division by it.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
from numpy.typing import NDArray

PASSES = 8


@cache
def _buffers() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """48 MB to stream, more than the caches of most processors, and a block that stays in them."""
    return np.ones(12_000_000, np.float32), np.linspace(0.0, 1.0, 65_536, dtype=np.float32)


def reference_load() -> float:
    """Run the load once on this thread; its cost in CPU seconds (about 0.03)."""
    stream, block = _buffers()
    start = time.thread_time()
    total = 0.0
    for _ in range(PASSES):
        total += float(stream.sum())
        for _ in range(60):
            total += float(np.multiply(block, block).sum())
    spent = time.thread_time() - start
    assert total > 0
    return spent
