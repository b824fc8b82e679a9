"""`Judgement`: how good a model is on held-out text, and how one compares with another.

A decoder is judged by its perplexity. An encoder, which predicts nothing, is judged by the cosine
between its pooled outputs and those of the model that it was made from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Network
from negawatt.compress.source import Source

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Judgement:
    """The quality of one model on some windows of text.

    Attributes:
        metric: ``perplexity`` (lower is better) or ``cosine`` (higher is better).
        scores: one a window: its mean loss in nats per token, or its outputs, fp32.
    """

    metric: str
    scores: torch.Tensor

    def value(self, reference: Judgement) -> float:
        """The metric; a cosine is taken to `reference`, which is the model's origin."""
        import torch

        if self.metric == "perplexity":
            return math.exp(min(float(self.scores.mean()), 700.0))
        return float(torch.nn.functional.cosine_similarity(self.scores, reference.scores, dim=-1).mean())

    def loss(self, reference: Judgement) -> float:
        """A number that is lower for the better of two models: nats per token, or 1 minus the cosine."""
        return float(self.scores.mean()) if self.metric == "perplexity" else 1 - self.value(reference)


def judge(source: Source, windows: torch.Tensor) -> Judgement:
    """Judge a model; one block's weights are in memory at a time.

    Args:
        source: the model.
        windows: int64, shape ``(n, length)``.
    """
    network = Network(source)
    hidden = network.embedded(windows)
    for number in range(len(network.blocks)):
        with network.loaded(number):
            network.forward(number, hidden, out=hidden)
    return judged(network, windows, hidden)


def judged(network: Network, windows: torch.Tensor, hidden: torch.Tensor) -> Judgement:
    """The judgement that follows from what the last block gave for the windows."""
    if network.is_decoder:
        return Judgement("perplexity", network.losses(windows, hidden).mean(dim=1))
    return Judgement("cosine", network.outputs(windows, hidden).mean(dim=1))


def compared(before: Judgement, after: Judgement, origin: Judgement) -> dict[str, Any]:
    """Quality before and after a pass, for the manifest.

    The interval of 95 % on the change in nats is over windows, paired; it is null for a cosine and
    for a single window.
    """
    document: dict[str, Any] = {
        "metric": after.metric,
        "before": before.value(origin),
        "after": after.value(origin),
        "windows": len(after.scores),
        "nats_low": None,
        "nats_high": None,
    }
    if after.metric == "perplexity" and len(after.scores) > 1:
        change = (after.scores - before.scores).double()
        half = 1.96 * float(change.std()) / math.sqrt(len(change))
        document |= {"nats_low": float(change.mean()) - half, "nats_high": float(change.mean()) + half}
    return document
