"""The precision of the key-value cache: what each one that an engine has costs in quality, and which will do.

For quality a text is fed as in generation, one token at a time behind a prompt, so that every token sees
those before it through the cache. For cost all precisions take turns behind longer prompts: a smaller cache
takes less memory, and may yet take more time. The reference is the engine's most precise cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.compress.payback import ROUNDS, Spent
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.backends import backend
from negawatt.errors import UsageError
from negawatt.meter import energy_of_cpu_time
from negawatt.profiling.profiler import baseline_ratio, ratio_json
from negawatt.profiling.window import Window, interleave, warm_up
from negawatt.workload import Ratio
from negawatt.workload.intervals import student_quantile

if TYPE_CHECKING:
    import torch

LIMIT_NATS = 0.01
"""A cache will do where its divergence from the reference is shown to be at most this, a token."""
MOST_WINDOWS = 8
PROMPT_TOKENS = 64
DECODED_TOKENS = 48
LONG_PROMPT_TOKENS, NEW_TOKENS = 512, 16
"""What cost is measured on: the longest prompt, and tokens generated behind it."""
_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "u8": 8.0, "q8_0": 8.5}
"""Bits of a cached number, scales included where they are per number; the first of equals is preferred."""


@dataclass(frozen=True)
class Cache:
    """What one precision gave.

    Attributes:
        name: as the engine calls it.
        pages: what its cache really holds, where the engine tells.
        kl: for each window, the mean divergence from the reference in nats a token.
        losses: for each window, the mean loss of the text's own tokens in nats.
        same: share of tokens where both prefer the same next token.
        ratio: CPU seconds of a decoded token with the reference over those with this one, at 95 %.
    """

    name: str
    pages: str
    kl: tuple[float, ...]
    losses: tuple[float, ...]
    same: float
    ratio: Ratio

    @property
    def will_do(self) -> bool:
        """Whether its divergence is shown to be within the limit, and it is not shown to cost more."""
        return self.kl_high <= LIMIT_NATS and self.ratio.high >= 1

    @property
    def kl_high(self) -> float:
        """Upper end of the divergence's one-sided interval of 95 % over windows; infinite for one window."""
        if len(self.kl) < 2:
            return math.inf if max(self.kl) > 0 else 0.0
        spread = float(np.std(self.kl, ddof=1)) / math.sqrt(len(self.kl))
        return float(np.mean(self.kl)) + student_quantile(0.95, len(self.kl) - 1) * spread

    def to_json(self) -> dict[str, Any]:
        return {
            "kv_cache": self.name,
            "holds": self.pages,
            "kl": float(np.mean(self.kl)),
            "kl_high": self.kl_high if math.isfinite(self.kl_high) else None,
            "perplexity": math.exp(float(np.mean(self.losses))),
            "top1_match": self.same,
            "ratio": ratio_json(self.ratio),
        }


def caches_of(settings: Settings) -> list[str]:
    """The precisions to compare, the reference first.

    Raises:
        UsageError: the engine has but one.
    """
    names = [name for name in backend(settings.engine).kv_caches if name in _BITS]
    if len(names) < 2:
        raise UsageError(f"{settings.engine} has one precision of the key-value cache, so there is no choice")
    return sorted(names, key=lambda name: -_BITS[name])


def compared(
    artifact: Artifact, windows: torch.Tensor, settings: Settings,
    tell: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:  # fmt: skip
    """Compare the precisions of the cache that an engine has, and recommend one.

    Args:
        artifact: the model.
        windows: text, int64, shape ``(n, length)``; the first few are used.
        settings: how to run it; the cache's precision in it is not used.
        tell: called with what is being done.

    Returns:
        ``recommended`` (the smallest cache whose divergence is shown to be within `LIMIT_NATS`, and
        that is not shown to cost more), ``caches`` with the figures of each, what was run, and what
        that cost.

    Raises:
        UsageError: the engine has but one precision, or the text is too short.
        EngineError: the engine refuses or fails.
    """
    names = caches_of(settings)
    texts = [row[: PROMPT_TOKENS + DECODED_TOKENS].tolist() for row in windows[:MOST_WINDOWS]]
    decoded = min(DECODED_TOKENS, len(texts[0]) - 1)
    prompts = [row[:LONG_PROMPT_TOKENS].tolist() for row in windows]
    longest = max(len(texts[0]), len(prompts[0]) + NEW_TOKENS)
    with ExitStack() as stack:
        engines = []
        for name in names:
            one = settings.without_speculation().replace(kv_cache=name, batch=1, max_context=longest)
            engines.append(stack.enter_context(Engine(artifact, one)))
        rows = []
        for name, engine in zip(names, engines, strict=True):
            tell(f"running {settings.engine} with a cache of {name}")
            rows.append([engine.distributions(text, decoded)[-decoded - 1 : -1] for text in texts])
            warm_up(engine, Request(prompts[0], NEW_TOKENS))
        tell(f"running {settings.engine} with all caches in turn")
        requests = [[Request(prompts[n % len(prompts)], NEW_TOKENS)] for n in range(ROUNDS)]
        costs = [[_decode_cost(w) for w in each]
                 for each in interleave(engines, [[r] * len(names) for r in requests])]  # fmt: skip
        found = [
            _judged(name, str(engine.info.get("kv_cache", "")), texts, ours, rows[0],
                    baseline_ratio(costs[0], cost))
            for name, engine, ours, cost in zip(names, engines, rows, costs, strict=True)
        ]  # fmt: skip
        cpu_s = sum(engine.spent_cpu_s for engine in engines)
    best = min((c for c in found if c.will_do), key=lambda cache: _BITS[cache.name])  # the reference will
    return {
        "settings": settings.to_json(),
        "recommended": best.name,
        "limit_nats": LIMIT_NATS,
        "caches": [cache.to_json() for cache in found],
        "windows": len(texts),
        "decoded": decoded,
        "prompt_tokens": len(prompts[0]),
        **Spent(cpu_s, energy_of_cpu_time(cpu_s)).to_json(),
    }


def _decode_cost(window: Window) -> float:
    """CPU seconds of a token fed behind the prompt."""
    steps = [step for step in window.steps if step.phase == "decode"]
    return sum(step.cpu_s for step in steps) / sum(step.tokens for step in steps)


def _judged(
    name: str, pages: str, texts: Sequence[list[int]], rows: Sequence[NDArray[np.float32]],
    reference: Sequence[NDArray[np.float32]], ratio: Ratio,
) -> Cache:  # fmt: skip
    """Figures of one precision from its log-probabilities, ``(decoded, vocabulary)`` for each text."""
    kl, losses, same = [], [], []
    for text, ours, theirs in zip(texts, rows, reference, strict=True):
        expected = theirs.astype(np.float64)
        kl.append(float((np.exp(expected) * (expected - ours)).sum(axis=1).mean()))
        losses.append(-float(ours[np.arange(len(ours)), text[-len(ours) :]].mean()))
        same.append(float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()))
    return Cache(name, pages, tuple(kl), tuple(losses), float(np.mean(same)), ratio)
