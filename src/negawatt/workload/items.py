"""The items of a workload: requests that joules are counted on, and questions with known answers.

Every record is frozen, hashable and engine-neutral. `to_record` and the readers in
`negawatt.workload.reader` are inverses: what one writes the other reads back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from negawatt.workload.corpus import Corpus

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; the engine puts it through the model's own chat template."""

    role: Role
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text, fed as it is, or chat messages, the last of which is the user's."""


@dataclass(frozen=True, slots=True)
class TrafficItem:
    """One request of the traffic.

    Attributes:
        id: unique within its file.
        prompt: what is sent.
        max_new_tokens: tokens to generate; a profile ignores end-of-text, so it is exactly this many.
        arrival_s: seconds after the first request at which this one arrives, or None where requests
            follow each other.
    """

    id: str
    prompt: Prompt
    max_new_tokens: int
    arrival_s: float | None = None


@dataclass(frozen=True, slots=True)
class GenerateItem:
    """Write freely; the answer is compared with each of `references` and the best match counts."""

    kind: ClassVar[str] = "generate"
    id: str
    prompt: Prompt
    references: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class ChooseItem:
    """Which of at least two distinct `choices` continues `context`? ``choices[answer]`` does."""

    kind: ClassVar[str] = "choose"
    id: str
    context: Prompt
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class ClassifyItem:
    """Which of at least two distinct `labels` follows `prompt`? `answer` is one of them."""

    kind: ClassVar[str] = "classify"
    id: str
    prompt: Prompt
    labels: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class PerplexityItem:
    """How surprised is the model by `text`?"""

    kind: ClassVar[str] = "perplexity"
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class RetrieveItem:
    """Which documents of `corpus` answer `query`? Those that `relevant` names; empty where nobody knows."""

    kind: ClassVar[str] = "retrieve"
    id: str
    query: str
    relevant: tuple[str, ...]
    corpus: Corpus


QualityItem = GenerateItem | ChooseItem | ClassifyItem | PerplexityItem | RetrieveItem
KINDS: tuple[str, ...] = ("generate", "choose", "classify", "perplexity", "retrieve")


def answers_are_choices(items: Sequence[QualityItem | TrafficItem]) -> bool:
    """Whether every item, of at least one, is answered by choosing; such answers have a margin."""
    return bool(items) and all(isinstance(item, ChooseItem | ClassifyItem) for item in items)


def queries_among(items: Iterable[QualityItem | TrafficItem]) -> list[RetrieveItem]:
    """Those of the items that search a corpus."""
    return [item for item in items if isinstance(item, RetrieveItem)]


def prompt_text(prompt: Prompt) -> str:
    """The words of a prompt without its roles, to judge its length or show it."""
    return prompt if isinstance(prompt, str) else "\n".join(m.content for m in prompt)


def to_record(item: TrafficItem | QualityItem) -> dict[str, Any]:
    """The JSON object that stands for an item on its line of an items file."""
    record: dict[str, Any] = {"id": item.id}
    if not isinstance(item, TrafficItem):
        record["kind"] = item.kind
    match item:
        case TrafficItem():
            record |= {"prompt": _prompt_record(item.prompt), "max_new_tokens": item.max_new_tokens}
            if item.arrival_s is not None:
                record["arrival_s"] = item.arrival_s
        case GenerateItem():
            record |= {"prompt": _prompt_record(item.prompt), "references": list(item.references)}
            record["max_new_tokens"] = item.max_new_tokens
        case ChooseItem():
            record |= {"context": _prompt_record(item.context), "choices": list(item.choices)}
            record["answer"] = item.answer
        case ClassifyItem():
            record |= {"prompt": _prompt_record(item.prompt), "labels": list(item.labels)}
            record["answer"] = item.answer
        case PerplexityItem():
            record["text"] = item.text
        case RetrieveItem():  # the corpus has a file of its own
            record["query"] = item.query
            if item.relevant:
                record["relevant"] = list(item.relevant)
    return record


def kinds_of(items: Iterable[QualityItem]) -> tuple[str, ...]:
    """The kinds that occur, in the order of `KINDS`."""
    found = {item.kind for item in items}
    return tuple(kind for kind in KINDS if kind in found)


def _prompt_record(prompt: Prompt) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        return prompt
    return [{"role": m.role, "content": m.content} for m in prompt]
