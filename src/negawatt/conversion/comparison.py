"""`Comparison`: how close a model that was read back is to the one it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact, Tokenizer
from negawatt.conversion.runner import Reader, Speaker
from negawatt.engine.padding import Padded
from negawatt.errors import ArtifactError

PROMPTS = (
    "The quickest way to cool a cup of tea is",
    "def add(a, b):\n    return",
    "Bees make honey because",
    "The capital of France is Paris, and the river through it is the",
)
"""What both are asked to go on with, and, with the source's answers, the text they are compared on."""

GREEDY_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Comparison:
    """A decoder against its source.

    Attributes:
        kl_nats: mean over positions of the divergence KL(source ‖ made) of next-token distributions.
        top1: share of positions where both hold the same token likeliest.
        greedy: share of freely written tokens, up to the first difference of each answer, that agree.
        n_positions, n_tokens: how many positions and written tokens that is over.
    """

    kl_nats: float
    top1: float
    greedy: float
    n_positions: int
    n_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, kl_nats: float) -> None:
        """Refuse a model further from its source than its types explain.

        Raises:
            ArtifactError: the divergence is above `kl_nats`, or no number.
        """
        _require_near(self.kl_nats, kl_nats, "token")


@dataclass(frozen=True, slots=True)
class Likeness:
    """An encoder against its source.

    Attributes:
        cosine: the least cosine of a token's hidden state with the source's.
        largest_difference: of any number, as a share of the source's largest.
        n_tokens: how many tokens that is over.
    """

    cosine: float
    largest_difference: float
    n_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, cosine: float) -> None:
        """Refuse a model further from its source than its types explain.

        Raises:
            ArtifactError: a cosine is below `cosine`, or no number.
        """
        if not self.cosine >= cosine:
            raise ArtifactError(
                f"what was written does not say what its source says (cosine {self.cosine:.4f} of hidden "
                f"states, at least {cosine:g} expected), so nothing was kept"
            )


@dataclass(frozen=True, slots=True)
class Labelling:
    """A classifier against its source.

    Attributes:
        kl_nats: mean over texts of the divergence KL(source ‖ made) of the labels' distributions.
        same: share of texts that both give the same label.
        n_texts: how many texts that is over.
    """

    kl_nats: float
    same: float
    n_texts: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, kl_nats: float) -> None:
        """Refuse a model further from its source than its types explain.

        Raises:
            ArtifactError: the divergence is above `kl_nats`, or no number.
        """
        _require_near(self.kl_nats, kl_nats, "text")


def _require_near(found: float, most: float, unit: str) -> None:
    """Refuse a divergence above `most` nats a `unit`, or one that is no number."""
    if not found <= most:
        raise ArtifactError(
            f"what was written does not say what its source says (KL {found:.3g} nats a {unit}, at most "
            f"{most:g} expected), so nothing was kept"
        )


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a decoder says: its answers to `PROMPTS`, and its distributions along the source's."""

    answers: list[list[int]]
    distributions: list[NDArray[np.float32]]


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """`PROMPTS` as tokens."""
    return [tokenizer.encode(text) for text in PROMPTS]


def spoken(speaker: Speaker, asked: Sequence[Sequence[int]], along: Spoken | None = None) -> Spoken:
    """Let a decoder answer, and say what it holds likely at each token of `along`'s answers, or its own."""
    answers = [speaker.greedy(tokens, GREEDY_TOKENS) for tokens in asked]
    texts = along.answers if along else answers
    found = [speaker.distributions([*tokens, *text]) for tokens, text in zip(asked, texts, strict=True)]
    return Spoken(answers, found)


def compared(source: Spoken, made: Spoken, *, where: str) -> Comparison:
    """The comparison of two that were asked the same.

    Raises:
        ArtifactError: they do not have the same vocabulary.
    """
    nats, same, n = 0.0, 0, 0
    for ours, theirs in zip(made.distributions, source.distributions, strict=True):
        width = min(ours.shape[1], theirs.shape[1])  # some engines pad the head to a round number
        if width < theirs.shape[1]:
            raise ArtifactError(f"{where} knows {width} tokens, and its source {theirs.shape[1]}")
        ours64, theirs64 = ours[:, :width].astype(np.float64), theirs.astype(np.float64)
        nats += float((np.exp(theirs64) * (theirs64 - ours64)).sum())
        same += int((ours64.argmax(axis=1) == theirs64.argmax(axis=1)).sum())
        n += len(ours64)
    agree = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), len(x))
        for x, y in zip(source.answers, made.answers, strict=True)
    ]
    written = sum(map(len, source.answers))
    return Comparison(
        max(nats / n, 0.0) if np.isfinite(nats) else nats, same / n, sum(agree) / written, n, written
    )


def likeness(source: Reader, made: Reader, artifact: Artifact) -> Likeness:
    """Compare the hidden states of two encoders on `PROMPTS`, one alone and the rest padded together."""
    least, furthest, n = 1.0, 0.0, 0
    for tokens, mask in _batches(artifact):
        theirs, ours = (r.read(tokens, mask)[mask == 1].astype(np.float64) for r in (source, made))
        cosine = (theirs * ours).sum(axis=1) / (np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1))
        least = min(least, float(cosine.min())) if np.isfinite(cosine).all() else float("nan")
        furthest = max(furthest, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        n += len(theirs)
    return Likeness(least, furthest, n)


def labelling(source: Reader, made: Reader, artifact: Artifact) -> Labelling:
    """Compare the labels that two classifiers give to `PROMPTS`, one alone and the rest padded together."""
    rows = [[_log_softmax(r.read(*batch)) for batch in _batches(artifact)] for r in (source, made)]
    theirs, ours = (np.concatenate(each) for each in rows)
    nats = float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())
    same = float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean())
    return Labelling(max(nats, 0.0) if np.isfinite(nats) else nats, same, len(theirs))


def _batches(artifact: Artifact) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Token ids and masks: the first of `PROMPTS` alone, and all together."""
    asked = prompts(artifact.tokenizer)
    given = [Padded.of(batch, 0) for batch in ([asked[0]], asked)]
    return [(each.tokens, each.mask) for each in given]


def _log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
