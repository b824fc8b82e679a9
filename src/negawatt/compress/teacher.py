"""What a teacher says, asked once and laid aside: of texts its logits, of windows its likeliest tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from negawatt.artifact import Artifact
from negawatt.compress.head import is_classifier, labels_of
from negawatt.compress.labelled import UNKNOWN, Labelled
from negawatt.compress.network import Network
from negawatt.compress.source import Source
from negawatt.compress.technique import Work
from negawatt.compress.text_model import TextModel
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

STEP = "teacher"
"""The step of a pass in which the teacher is asked."""


def teacher_of(reference: str, source: Source, name: str) -> Source:
    """The teacher of a decoder.

    Raises:
        UsageError: it is no decoder, or has other tokens than its student.
    """
    teacher = Source.of(Artifact.open(reference))
    if not Network(teacher).is_decoder:
        raise UsageError(f"{name}: {teacher.name} is no decoder, and cannot teach {source.name} its tokens")
    if teacher.tokenizer.definition != source.tokenizer.definition:
        raise UsageError(
            f"{name}: {teacher.name} has other tokens than {source.name}; choose a teacher with "
            f"the same, or {name} before the vocabulary is cut"
        )
    return teacher


def classifier_of(reference: str, labels: tuple[str, ...] | None, name: str) -> Source:
    """The teacher of a classifier.

    Raises:
        UsageError: it is no classifier, or has other labels than the texts.
    """
    teacher = Source.of(Artifact.open(reference))
    if not is_classifier(teacher.config):
        raise UsageError(
            f"{name}: {teacher.name} is no classifier; make one of it first, with --pass classifier"
        )
    if labels is not None and labels_of(teacher.config) != labels:
        raise UsageError(
            f"{name}: {teacher.name} tells {', '.join(labels_of(teacher.config))} apart, and the texts are "
            f"labelled {', '.join(labels)}"
        )
    return teacher


def ask_about_texts(work: Work, teacher: Source, texts: Labelled, with_hidden: bool) -> None:
    """Lay aside the logits of a classifier, shape ``(texts, labels)``, and its mean hidden states."""
    if work.draft.kept(STEP) is not None:
        return
    rows = texts.encoded(teacher)
    answers = TextModel(teacher, half=True).answers(
        rows, with_hidden=with_hidden, tell=lambda n: work.progress(n, len(rows), "asking the teacher")
    )
    found = answers["logits"].argmax(-1).tolist()
    right = [a == b for a, b in zip(found, texts.answers, strict=True) if b != UNKNOWN]
    work.draft.keep(STEP, aside=answers, facts={"agrees_with_labels": sum(right) / len(right)})


def ask_about_windows(
    work: Work, teacher: Source, *, top_k: int, temperature: float, with_hidden: bool, precision: torch.dtype
) -> None:
    """Lay aside a decoder's distribution over the next token, softened by a temperature.

    Kept are, for each of the ``length - 1`` predictions of a window, the ``ids`` of the likeliest
    tokens, their ``log_probs``, shape ``(windows, length - 1, top_k)``, and the log of the probability
    of all the ``others`` together; ``hidden`` are its last hidden states in half precision.
    """
    import torch

    assert work.tokens is not None
    if work.draft.kept(STEP) is not None:
        return
    parts: dict[str, list[torch.Tensor]] = {}
    with Network(teacher).whole(precision) as model, torch.inference_mode():
        for number, row in enumerate(work.tokens):
            work.progress(number, len(work.tokens), "asking the teacher")
            found = model(input_ids=row[None], use_cache=False, output_hidden_states=with_hidden)
            logs = (found.logits[0, :-1].float() / temperature).log_softmax(-1)
            best = logs.topk(min(top_k, logs.shape[-1]), dim=-1)
            others = (1 - best.values.double().exp().sum(-1)).clamp_min(1e-12).log().float()
            kept = {"ids": best.indices.int(), "log_probs": best.values, "others": others}
            if with_hidden:
                kept["hidden"] = found.hidden_states[-1][0, :-1].half()
            for name, value in kept.items():
                parts.setdefault(name, []).append(value)
    aside = {name: torch.stack(values) for name, values in parts.items()}
    mass = float((1 - aside["others"].exp()).mean())
    work.draft.keep(STEP, aside=aside, facts={"probability_kept": mass})


def divergence(
    logits: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor, others: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Kullback-Leibler divergence of a student from what a teacher said, nats a token, times T².

    Tokens that were not kept count as one outcome, so this never exceeds the whole divergence, and is
    0 where the student gives the kept tokens the teacher's probabilities (Hinton et al. 2015).

    Args:
        logits: of the student, shape ``(tokens, vocabulary)``.
        ids, log_probs: of the teacher's likeliest tokens, shape ``(tokens, k)``.
        others: log-probability of all others together, shape ``(tokens,)``.
        temperature: by which both distributions are softened.
    """
    import torch

    found = (logits / temperature).log_softmax(-1)
    ours = found.gather(-1, ids.long())
    rest = (1 - ours.exp().sum(-1)).clamp_min(1e-12).log()
    if ids.shape[-1] == logits.shape[-1]:
        rest = others  # nothing is left over
    kept = (log_probs.exp() * (log_probs - ours)).sum(-1)
    return torch.mean(kept + others.exp() * (others - rest)) * temperature**2


def unlike(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """1 minus the cosine between hidden states, on the mean."""
    import torch

    return 1 - torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()


def bridge(ours: int, theirs: int, seed: int) -> torch.Tensor | None:
    """A map from a student's hidden states to those of a teacher of another width, to be learnt along."""
    import torch

    if ours == theirs:
        return None
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(theirs, ours, generator=generator) / ours**0.5).requires_grad_(True)
