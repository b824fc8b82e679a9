"""`Judgement`: how good a model is on held-out text, and how one compares with another.

A decoder is judged by its perplexity, a classifier by its accuracy where there are texts with its labels.
Any other encoder, which predicts nothing, is judged by the cosine between its pooled outputs and those of
the model that it was made from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.compress.head import is_classifier, labels_of
from negawatt.compress.labelled import Labelled
from negawatt.compress.network import Network
from negawatt.compress.source import Source
from negawatt.compress.text_model import TextModel

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Judgement:
    """The quality of one model on some windows of text.

    Attributes:
        metric: ``perplexity`` (lower is better), ``cosine`` or ``accuracy`` (higher is better).
        scores: one a window: its mean loss in nats per token, or its outputs, fp32; or one a text: 1
            where its label is found, else 0.
        nats: of a classifier, the loss of each text in nats: a finer measure than its accuracy.
    """

    metric: str
    scores: torch.Tensor
    nats: torch.Tensor | None = None

    def value(self, reference: Judgement) -> float:
        """The metric; a cosine is taken to `reference`, which is the model's origin."""
        import torch

        if self.metric == "perplexity":
            return math.exp(min(float(self.scores.mean()), 700.0))
        if self.metric == "accuracy":
            return float(self.scores.mean())
        return float(torch.nn.functional.cosine_similarity(self.scores, reference.scores, dim=-1).mean())

    def loss(self, reference: Judgement) -> float:
        """A number that is lower for the better of two models: nats, or 1 minus the cosine."""
        if self.nats is not None:
            return float(self.nats.mean())
        return float(self.scores.mean()) if self.metric == "perplexity" else 1 - self.value(reference)

    def told(self, reference: Judgement) -> str:
        """The metric with its value, and the loss beside it where that is what decides between two."""
        words = f"{self.metric} {self.value(reference):.4g}"
        return words if self.nats is None else f"{words} at a loss of {self.loss(reference):.4f} nats a text"


def judge(source: Source, windows: torch.Tensor, questions: Labelled | None = None) -> Judgement:
    """Judge a model; one block's weights are in memory at a time, a classifier's all at once.

    Args:
        source: the model.
        windows: int64, shape ``(n, length)``.
        questions: what a classifier with these labels is judged by instead.
    """
    if questions and is_classifier(source.config) and labels_of(source.config) == questions.names:
        return _classified(source, questions)
    network = Network(source)
    hidden = network.embedded(windows)
    for number in range(len(network.blocks)):
        with network.loaded(number):
            network.forward(number, hidden, out=hidden)
    return judged(network, windows, hidden)


def _classified(source: Source, questions: Labelled) -> Judgement:
    import torch

    logits = TextModel(source).answers(questions.encoded(source))["logits"]
    answers = torch.tensor(questions.answers)
    right = (logits.argmax(-1) == answers).float()
    return Judgement("accuracy", right, torch.nn.functional.cross_entropy(logits, answers, reduction="none"))


def judged(network: Network, windows: torch.Tensor, hidden: torch.Tensor) -> Judgement:
    """The judgement that follows from what the last block gave for the windows."""
    if network.is_decoder:
        return Judgement("perplexity", network.losses(windows, hidden).mean(dim=1))
    return Judgement("cosine", network.outputs(windows, hidden).mean(dim=1))


def compared(before: Judgement, after: Judgement, origin: Judgement) -> dict[str, Any]:
    """Quality before and after a pass, for the manifest.

    The interval of 95 % on the change in nats is over windows, paired; it is null for other metrics
    and for a single window. What could not be judged by the same metric before is null.
    """
    document: dict[str, Any] = {
        "metric": after.metric,
        "before": before.value(origin) if before.metric == after.metric else None,
        "after": after.value(origin),
        "windows": len(after.scores),
        "nats_low": None,
        "nats_high": None,
    }
    if before.metric == after.metric == "perplexity" and len(after.scores) > 1:
        change = (after.scores - before.scores).double()
        half = 1.96 * float(change.std()) / math.sqrt(len(change))
        document |= {"nats_low": float(change.mean()) - half, "nats_high": float(change.mean()) + half}
    return document
