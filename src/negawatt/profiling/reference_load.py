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

PASSES = 6
_STREAMS, _BLOCK = 8, 8192


@cache
def _buffers() -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.float32]]:
    """48 MB to stream, more than the caches of most processors, and blocks that stay in them."""
    streams = np.ones((_STREAMS, 1_466_368), np.float32)
    return list(streams), np.empty(_BLOCK, np.float32), np.linspace(0.0, 1.0, 65_536, dtype=np.float32)


def reference_load() -> float:
    """Run the load once on this thread; its cost in CPU seconds (about 0.02).

    Two streams are read at a time: a single one waits for memory, so that a neighbour slows it far
    more than it slows the engines. No BLAS takes part, whose threads would not be counted.
    """
    streams, both, block = _buffers()
    start = time.thread_time()
    total = 0.0
    for _ in range(PASSES):
        for one, other in zip(streams[::2], streams[1::2], strict=True):
            for at in range(0, one.size, _BLOCK):
                np.add(one[at : at + _BLOCK], other[at : at + _BLOCK], out=both)
        for _ in range(50):
            total += float(np.multiply(block, block).sum())
    spent = time.thread_time() - start
    assert total > 0
    return spent
