"""What an `Engine` answers, each with what it cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from negawatt.engine.decode import Completion, Step


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost the worker: wall and CPU seconds, and its peak memory so far."""

    wall_s: float
    cpu_s: float
    total_cpu_s: float
    peak_rss_bytes: int

    def and_then(self, after: Usage) -> Usage:
        """What this call and a later one of the same worker cost together."""
        return Usage(
            self.wall_s + after.wall_s,
            self.cpu_s + after.cpu_s,
            after.total_cpu_s,
            max(self.peak_rss_bytes, after.peak_rss_bytes),
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """Answers of `Engine.generate`, with a `Step` for every engine call and the whole cost."""

    completions: list[Completion]
    steps: list[Step]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Classification:
    """Answers of `Engine.classify`: log-probabilities in nats, shape ``(texts, labels)``, and their cost."""

    log_probs: NDArray[np.float32]
    steps: list[Step]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Embedding:
    """Answers of `Engine.embed`: vectors, shape ``(texts, width)``, and their cost."""

    vectors: NDArray[np.float32]
    steps: list[Step]
    usage: Usage
