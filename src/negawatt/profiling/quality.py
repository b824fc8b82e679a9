"""Running a quality set on an engine: questions in, one score per item out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Tokenizer
from negawatt.engine import Engine, Generation, Request, Settings, Step
from negawatt.errors import WorkloadError
from negawatt.profiling.retrieval import Index, query_tokens
from negawatt.workload import (
    ClassifyItem,
    GenerateAsk,
    Generated,
    Interval,
    Prompt,
    QualityItem,
    RankAsk,
    Response,
    ScoreAsk,
    Scored,
    TrafficItem,
    aggregate,
    ask,
    judge,
    judge_agreement,
    margin,
    prompt_text,
    weight,
)
from negawatt.workload.items import queries_among

ITEMS_PER_CALL = 32
SCORING_BATCH = 32
SCORING_CONTEXT = 1024
"""Scoring runs many short sequences side by side; quality does not depend on how many."""

TokenPair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Quality:
    """Scores of items under one metric.

    Attributes:
        metric: its name.
        scores: item id → score.
        weights: item id → weight in the aggregate.
        margins: item id → how sure the answer was, see `negawatt.workload.margin`; of choices only.
        cpu_s: CPU seconds that answering took.
    """

    metric: str
    scores: Mapping[str, float]
    weights: Mapping[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def interval(self) -> Interval:
        """The aggregate score with its interval."""
        weights = [self.weights.get(i, 1.0) for i in self.scores]
        return aggregate(self.metric, list(self.scores.values()), weights=weights)

    def to_json(self) -> dict[str, Any]:
        found = self.interval
        return {
            "metric": self.metric,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n": found.n,
        }


def scoring_settings(settings: Settings) -> Settings:
    """The settings that quality is judged under: same arithmetic, arranged for many short texts."""
    return settings.without_speculation().replace(
        batch=SCORING_BATCH,
        threads=None,
        max_context=min(SCORING_CONTEXT, settings.max_context),
    )


@dataclass(frozen=True)
class Answered:
    """Responses to questions, and what they took.

    Attributes:
        responses: one for each question, in their order.
        fed: tokens fed for each question.
        steps: the engine's calls.
        cpu_s, wall_s: of the worker.
        own_waits_s: seconds that each question waited, where that is not to be told from the steps.
    """

    responses: tuple[Response, ...]
    fed: tuple[int, ...]
    steps: tuple[Step, ...]
    cpu_s: float
    wall_s: float
    own_waits_s: tuple[float, ...] = ()

    @property
    def waits_s(self) -> list[float]:
        """Seconds that each question waited for the engine's call that answered it."""
        if self.own_waits_s:
            return list(self.own_waits_s)
        waits = [step.wall_s for step in self.steps for _ in range(step.sequences)]
        share = len(waits) / len(self.fed)  # sequences a question: its choices, maybe in several calls
        return [waits[min(len(waits) - 1, int((i + 1) * share) - 1)] for i in range(len(self.fed))]


def answered(engine: Engine, items: Sequence[QualityItem], index: Index | None = None) -> Answered:
    """Let a model answer questions, in as few calls as their kinds allow.

    Args:
        index: of what queries search; made for the call where there is none, and not told of in its cost.

    Raises:
        WorkloadError: an item does not fit into the engine's context (named), or is no question of
            the kind that the model answers.
    """
    if engine.labels:
        return _labelled(engine, items)
    if queries_among(items) or engine.width is not None:
        return _searched(engine, items, index)
    tokenizer = engine.artifact.tokenizer
    responses: list[Response | None] = [None] * len(items)
    fed = [0] * len(items)
    pairs: list[TokenPair] = []
    where: list[tuple[int, int]] = []  # (item, how many of the pairs are its)
    steps: list[Step] = []
    cpu_s = wall_s = 0.0
    for position, item in enumerate(items):
        asked = ask(item)
        if isinstance(asked, GenerateAsk):
            text, generation, fed[position] = _generate(engine, asked)
            responses[position] = Generated(text)
            steps += generation.steps
            cpu_s, wall_s = cpu_s + generation.usage.cpu_s, wall_s + generation.usage.wall_s
            continue
        assert isinstance(asked, ScoreAsk), "what searches a corpus was answered above"
        found = list(_pairs(tokenizer, asked, engine.settings.max_context))
        if max(len(c) + len(r) for c, r in found) > engine.settings.max_context:
            raise WorkloadError(
                f"item {item.id!r} is longer than the context of {engine.settings.max_context} tokens"
            )
        where.append((position, len(found)))
        fed[position] = sum(len(c) + len(r) - 1 for c, r in found)
        pairs += found
    if pairs:
        scores, usage = engine.score(pairs)
        steps += engine.last_steps
        cpu_s, wall_s = cpu_s + usage.cpu_s, wall_s + usage.wall_s
        taken = iter(scores)
        for position, count in where:
            log_probs = [next(taken)[0] for _ in range(count)]
            responses[position] = _scored(ask(items[position]), log_probs)
    return Answered(tuple(r for r in responses if r is not None), tuple(fed), tuple(steps), cpu_s, wall_s)


def _labelled(engine: Engine, items: Sequence[QualityItem]) -> Answered:
    """What a classifier says of items whose labels it knows."""
    names = engine.labels
    for item in items:
        if not isinstance(item, ClassifyItem) or not set(item.labels) <= set(names):
            raise WorkloadError(
                f"{engine.artifact.name} tells {', '.join(names)} apart, which does not answer "
                f"item {item.id!r}"
            )
    asked = [item for item in items if isinstance(item, ClassifyItem)]
    texts = [engine.artifact.tokenizer.encode(prompt_text(i.prompt), add_special=True) for i in asked]
    found = engine.classify(texts)
    rows = [[float(row[names.index(label)]) for label in item.labels]
            for item, row in zip(asked, found.log_probs, strict=True)]  # fmt: skip
    return Answered(
        tuple(Scored(tuple(row), (1,) * len(row)) for row in rows), tuple(map(len, texts)),
        tuple(found.steps), found.usage.cpu_s, found.usage.wall_s,
    )  # fmt: skip


def _searched(engine: Engine, items: Sequence[QualityItem], index: Index | None) -> Answered:
    """What a model that embeds finds in a corpus."""
    queries = queries_among(items)
    if len(queries) < len(items):
        other = next(item for item in items if item not in queries)
        raise WorkloadError(f"{engine.artifact.name} embeds texts, which does not answer item {other.id!r}")
    texts = query_tokens(engine.artifact, engine.settings, queries)
    index = index or Index.of(engine, queries[0].corpus)
    found = engine.embed(texts)
    return Answered(
        tuple(index.nearest(found.vectors)), tuple(map(len, texts)), tuple(found.steps), found.usage.cpu_s,
        found.usage.wall_s,
    )  # fmt: skip


def _scored(asked: object, log_probs: list[list[float]]) -> Scored:
    assert isinstance(asked, ScoreAsk)
    if len(asked.continuations) == 1:  # one long text, perhaps cut into windows
        log_probs = [[x for window in log_probs for x in window]]
    return Scored(tuple(map(sum, log_probs)), tuple(map(len, log_probs)))


def _pairs(tokenizer: Tokenizer, asked: ScoreAsk, max_context: int) -> Iterator[TokenPair]:
    """Context and continuation as tokens; a text without context in windows that fit."""
    if asked.context:
        for continuation in asked.continuations:
            yield _split(tokenizer, asked.context, continuation)
        return
    for text in asked.continuations:
        tokens = tokenizer.encode(text)
        first = [tokenizer.bos_id] if tokenizer.bos_id is not None else [tokens.pop(0)]
        for start in range(0, len(tokens), max_context - 1):
            yield first, tokens[start : start + max_context - 1]
            first = [tokens[min(start + max_context - 2, len(tokens) - 1)]]


def _split(tokenizer: Tokenizer, context: Prompt, continuation: str) -> TokenPair:
    """Tokens of both together, cut where the context's own tokens end.

    Tokenizing together and cutting keeps a merge across the border on the continuation's side, as
    language-model evaluation does it.
    """
    if not isinstance(context, str):
        return prompt_tokens(tokenizer, context), tokenizer.encode(continuation)
    before = tokenizer.encode(context, add_special=True)
    both = tokenizer.encode(context + continuation, add_special=True)
    cut = min(len(before), len(both) - 1)
    return both[:cut], both[cut:]


def tokens_held(tokenizer: Tokenizer, item: QualityItem, *, labelling: bool = False) -> int:
    """Tokens of the longest sequence that answering an item takes, what is written included.

    Of a query see `negawatt.profiling.retrieval.query_tokens`.

    Args:
        labelling: by a model with a head, which reads the prompt alone.
    """
    if labelling and isinstance(item, ClassifyItem):
        return len(tokenizer.encode(prompt_text(item.prompt), add_special=True))
    asked = ask(item)
    assert not isinstance(asked, RankAsk), "a query's tokens are the pooling's affair"
    if isinstance(asked, GenerateAsk):
        return len(prompt_tokens(tokenizer, asked.prompt)) + asked.max_new_tokens
    if not asked.context:
        return 1  # a long text is cut into windows that fit
    return max(sum(map(len, _split(tokenizer, asked.context, each))) for each in asked.continuations)


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A prompt as token ids: plain text as it is, messages through the model's chat template."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special=True)
    return tokenizer.chat([{"role": m.role, "content": m.content} for m in prompt])


def _generate(engine: Engine, asked: GenerateAsk) -> tuple[str, Generation, int]:
    """The text, what it took, and how many tokens were asked with."""
    tokenizer = engine.artifact.tokenizer
    request = Request(prompt_tokens(tokenizer, asked.prompt), asked.max_new_tokens, tokenizer.eos_ids)
    generation = engine.generate([request])
    text = tokenizer.decode(generation.completions[0].tokens)
    for stop in asked.stop:
        text = text.lstrip("\n").split(stop)[0] if stop == "\n" else text.split(stop)[0]
    return text, generation, len(request.tokens)


def judged(
    engine: Engine,
    items: Sequence[QualityItem],
    metrics: Mapping[str, str],
    progress: Callable[[int], None] = lambda done: None,
    index: Index | None = None,
) -> Quality:
    """Answer and score items. Items of several kinds are scored each by its kind's metric.

    Args:
        engine: open, best under `scoring_settings`.
        items: at least one.
        metrics: kind → metric.
        progress: called with the number of items done.
        index: of what queries search, as for `answered`.
    """
    scores: dict[str, float] = {}
    weights: dict[str, float] = {}
    margins: dict[str, float] = {}
    cpu_s = 0.0
    for start in range(0, len(items), ITEMS_PER_CALL):
        part = items[start : start + ITEMS_PER_CALL]
        found = answered(engine, part, index)
        cpu_s += found.cpu_s
        for item, response in zip(part, found.responses, strict=True):
            scores[item.id] = judge(metrics[item.kind], item, response)
            weights[item.id] = weight(metrics[item.kind], response)
            if (lead := margin(metrics[item.kind], item, response)) is not None:
                margins[item.id] = lead
        progress(len(scores))
    names = sorted({metrics[item.kind] for item in items})
    return Quality(names[0] if len(names) == 1 else "mixed", scores, weights, cpu_s, margins)


# -- without labels: agreement with a reference -----------------------------------------------------


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the reference wrote to some prompts, and how sure it was at each token of it.

    Attributes:
        ids: of the prompts.
        texts: (prompt tokens, answer tokens).
        log_probs: for each, an array of shape ``(answer tokens, vocabulary)``, half precision.
    """

    ids: tuple[str, ...]
    texts: tuple[TokenPair, ...]
    log_probs: tuple[NDArray[np.float16], ...]


AGREEMENT_TOKENS = 48


def reference_answers(engine: Engine, items: Sequence[TrafficItem | QualityItem]) -> ReferenceAnswers:
    """Let the reference write answers, and keep its distributions along them."""
    tokenizer = engine.artifact.tokenizer
    texts: list[TokenPair] = []
    kept: list[NDArray[np.float16]] = []
    for item in items:
        asked = ask(item)
        assert not isinstance(asked, RankAsk), "searches agree by what they find"
        prompt = asked.prompt if isinstance(asked, GenerateAsk) else asked.context
        tokens = prompt_tokens(tokenizer, prompt)
        completion = engine.generate([Request(tokens, AGREEMENT_TOKENS)]).completions[0]
        texts.append((tokens, completion.tokens))
        kept.append(_along(engine, tokens, completion.tokens).astype(np.float16))
    return ReferenceAnswers(tuple(i.id for i in items), tuple(texts), tuple(kept))


def agreement(engine: Engine, reference: ReferenceAnswers) -> dict[str, Quality]:
    """``top1_match`` and ``kl_divergence`` of an engine with the reference, along its answers."""
    scores: dict[str, dict[str, float]] = {"top1_match": {}, "kl_divergence": {}}
    for id_, (prompt, written), expected in zip(
        reference.ids, reference.texts, reference.log_probs, strict=True
    ):
        found = _along(engine, prompt, written)
        for name in scores:
            scores[name][id_] = judge_agreement(name, expected.astype(np.float32), found)
    return {name: Quality(name, values) for name, values in scores.items()}


def _along(engine: Engine, prompt: list[int], written: list[int]) -> NDArray[np.float32]:
    rows = engine.distributions([*prompt, *written][:-1])
    return rows[len(prompt) - 1 :]
