"""`Calibration`: how sure the small model of a cascade has to be, found on labelled work and proved."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Energy
from negawatt.errors import Infeasible, UsageError, WorkloadError
from negawatt.serve.admission import Caller, OpenGate
from negawatt.serve.ask import chat_ask, completion_ask
from negawatt.serve.cascade import CascadeConfig, identity
from negawatt.serve.config import ServerConfig
from negawatt.serve.launch import served
from negawatt.serve.model import ServedModel
from negawatt.serve.server import Server
from negawatt.workload import (
    Difference,
    GenerateAsk,
    Generated,
    GenerateItem,
    Workload,
    aggregate,
    ask,
    items_needed,
    judge,
    metric,
    paired_difference,
)

SHARES = 20
"""Thresholds that are tried: those that let the small model answer a 20th of the items, two, and so on."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One item's answer by one model.

    Attributes:
        score: by the workload's metric.
        confidence: mean log-probability of a token, in nats.
        energy: joules of its receipt.
    """

    score: float
    confidence: float
    energy: Energy


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold with what it does on the items it was found on.

    Attributes:
        threshold: least confidence.
        alone: for each item whether the small model's answer is handed out.
        scores: of the cascade.
        difference: of the cascade from the large model; its one-sided bound is the proof.
    """

    threshold: float
    alone: tuple[bool, ...]
    scores: tuple[float, ...]
    difference: Difference


@dataclass(frozen=True, slots=True)
class Calibration:
    """See the module's text.

    Attributes:
        name, metric: of the cascade, and what its answers were judged by.
        small, large: answers to the same items.
        models: what the two models are, see `negawatt.serve.cascade.identity`.
        choice: the lowest threshold that is proved.
        most_drop: what the mean score may lose at most against the large model.
    """

    name: str
    metric: str
    small: tuple[Answered, ...]
    large: tuple[Answered, ...]
    models: tuple[dict[str, Any], dict[str, Any]]
    choice: Choice
    most_drop: float

    def to_json(self) -> dict[str, Any]:
        choice, n = self.choice, len(self.small)
        tried = Energy.total(a.energy for a in self.small)
        again = Energy.total(a.energy for a, alone in zip(self.large, choice.alone, strict=True) if not alone)
        always = Energy.total(a.energy for a in self.large)
        cascade = tried + again
        saving = None
        if cascade.value_j is not None and always.value_j:
            saving = 1 - cascade.value_j / always.value_j
        difference = choice.difference
        return {
            "cascade": self.name,
            "threshold": choice.threshold,
            "n": n,
            "metric": self.metric,
            "share_small": sum(choice.alone) / n,
            "small": {**self._told([a.score for a in self.small], tried), "model": self.models[0]},
            "large": {**self._told([a.score for a in self.large], always), "model": self.models[1]},
            "both": self._told(choice.scores, cascade),
            "saving": saving,
            "drop": {
                "value": difference.drop,
                "at_most": difference.upper_one_sided,
                "allowed": self.most_drop,
                "confidence": difference.confidence,
                "method": difference.method,
            },
        }

    def _told(self, scores: Sequence[float], energy: Energy) -> dict[str, Any]:
        found = aggregate(self.metric, list(scores))
        quality = {"value": found.value, "low": found.low, "high": found.high}
        return {"quality": quality, "energy_per_item": energy.scaled(1 / len(scores)).to_json()}


def choose(
    small: Sequence[Answered], large: Sequence[Answered], most_drop: float, confidence: float
) -> Choice | None:
    """The lowest threshold whose cascade is proved to lose at most `most_drop` against the large model.

    Thresholds are tried from the highest down, each at the full level, until one is not proved. This is
    fixed-sequence testing, as in Learn then Test (Angelopoulos et al. 2021): the chance of a wrong proof is
    that of a single one. Which thresholds are tried depends on confidences alone, not on what is right.

    Returns:
        None where not even the first is proved.
    """
    ordered = sorted((a.confidence for a in small), reverse=True)
    wanted = [a.score for a in large]
    found: Choice | None = None
    for step in range(1, SHARES + 1):
        threshold = ordered[math.ceil(step * len(ordered) / SHARES) - 1]
        if threshold == -math.inf:  # an answer without a token is never handed out
            break
        if found is not None and threshold == found.threshold:
            continue
        alone = tuple(a.confidence >= threshold for a in small)
        scores = tuple(s.score if own else b.score for s, b, own in zip(small, large, alone, strict=True))
        difference = paired_difference(wanted, scores, confidence=confidence)
        if not difference.drop_is_proved_below(most_drop):
            break
        found = Choice(threshold, alone, scores, difference)
    return found


def proved(
    name: str, small: Sequence[Answered], large: Sequence[Answered], most_drop: float, confidence: float
) -> Choice:
    """As `choose`.

    Raises:
        Infeasible: nothing is proved of the cascade of this name; the sentence says what would help.
    """
    choice = choose(small, large, most_drop, confidence)
    if choice is None:
        needed = items_needed(most_drop, 0.0, confidence=confidence)
        raise Infeasible(
            f"no threshold of {name} is proved to lose at most {most_drop:g} on {len(small)} items at "
            f"{confidence:.0%}; more items (at least {needed}), a larger drop or a better small model help"
        )
    return choice


async def calibrate(
    config: ServerConfig,
    name: str,
    workload: Workload,
    *,
    most_drop: float = 0.02,
    confidence: float = 0.95,
    most_items: int | None = None,
    tick: Callable[[str], None] = lambda said: None,
) -> Calibration:
    """Ask both models of a cascade what a workload asks, as the server would, one model after the other.

    Args:
        config: holds the cascade, whose threshold is not looked at, and its models.
        name: of the cascade.
        workload: with items that ask for text and their references.
        most_drop: of the mean score against the large model.
        confidence: of the proof.
        most_items: as many of them at most, drawn evenly.
        tick: told what goes on.

    Raises:
        UsageError: there is no such cascade.
        WorkloadError: the workload has no items of the kind.
        Infeasible: no threshold is proved; the sentence says what would help.
    """
    cascade = next((c for c in config.cascades if c.name == name), None)
    if cascade is None:
        there = ", ".join(c.name for c in config.cascades) or "none"
        raise UsageError(f"{config.source} has no [[cascade]] called {name}; there are {there}")
    drawn = workload if most_items is None else workload.subset(most_items)
    items = [item for item in drawn.quality if isinstance(item, GenerateItem)]
    if not items:
        raise WorkloadError(f"{workload.name} has no quality items of the kind generate, as a cascade needs")
    judged_by = workload.metrics["generate"]
    if not metric(judged_by).is_bounded or not metric(judged_by).higher_is_better:
        raise WorkloadError(f"a cascade is judged by a score from 0 to 1, not by {judged_by}")
    models = [_model(config, cascade, model) for model in (cascade.small, cascade.large)]
    answers = []
    for model in models:
        tick(f"{len(items)} items for {model.name}")
        answers.append(await _answers(model, items, judged_by))
    small, large = answers
    choice = proved(name, small, large, most_drop, confidence)
    identities = identity(models[0]), identity(models[1])
    return Calibration(name, judged_by, small, large, identities, choice, most_drop)


def _model(config: ServerConfig, cascade: CascadeConfig, name: str) -> ServedModel:
    for chosen in config.models:
        model = served(chosen, lambda receipt: None, config.footprint())
        if model.name == name:
            return model
    raise UsageError(f"the cascade {cascade.name} names {name}, which is no [[model]] of {config.source}")


async def _answers(model: ServedModel, items: Sequence[GenerateItem], judged_by: str) -> tuple[Answered, ...]:
    """What a model answers, as many at once as it writes."""
    server = Server([model], OpenGate())
    room = asyncio.Semaphore(model.options.settings.batch)

    async def one(item: GenerateItem) -> Answered:
        async with room:
            return await _answer(server, model.name, item, judged_by)

    await server.start()
    try:
        return tuple(await asyncio.gather(*map(one, items)))
    finally:
        await server.stop()


async def _answer(server: Server, name: str, item: GenerateItem, judged_by: str) -> Answered:
    asked = ask(item)
    assert isinstance(asked, GenerateAsk)
    body: dict[str, Any] = {
        "model": name, "max_tokens": asked.max_new_tokens, "temperature": 0, "stop": list(asked.stop)
    }  # fmt: skip
    if isinstance(asked.prompt, str):
        read = completion_ask({**body, "prompt": asked.prompt})
    else:
        told = [{"role": message.role, "content": message.content} for message in asked.prompt]
        read = chat_ask({**body, "messages": told})
    read = replace(read, sampling=replace(read.sampling, log_probs=0))
    model, task = await server.submit(Caller(), read)
    await server.finish(model, task)
    assert task.receipt is not None
    (choice,) = task.choices
    score = judge(judged_by, item, Generated(choice.writing.text.strip()))
    return Answered(score, task.confidence, task.receipt.energy)
