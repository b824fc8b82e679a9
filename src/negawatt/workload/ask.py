"""From an item to what an engine must run, and what it answers: the seam between workload and engine."""

from __future__ import annotations

from dataclasses import dataclass

from negawatt.workload.corpus import Corpus
from negawatt.workload.items import (
    ChooseItem,
    ClassifyItem,
    GenerateItem,
    PerplexityItem,
    Prompt,
    QualityItem,
    RetrieveItem,
    TrafficItem,
)


@dataclass(frozen=True, slots=True)
class ScoreAsk:
    """Find the log-probability of each continuation, given the context.

    An empty `context` means that the continuation is scored from the beginning of the text: its
    first token is conditioned on the model's begin-of-text token, or is left out where it has none.
    """

    context: Prompt
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GenerateAsk:
    """Write up to `max_new_tokens` tokens greedily; stop before the first of the texts in `stop`."""

    prompt: Prompt
    max_new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RankAsk:
    """Find the documents of `corpus` whose vectors are nearest to that of `query`."""

    query: str
    corpus: Corpus


Ask = ScoreAsk | GenerateAsk | RankAsk


@dataclass(frozen=True, slots=True)
class Scored:
    """Answer to a `ScoreAsk`.

    Attributes:
        log_probs: for each continuation the sum of its tokens' log-probabilities, in nats.
        token_counts: how many tokens each sum runs over.
    """

    log_probs: tuple[float, ...]
    token_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """Answer to a `GenerateAsk`: the text, without prompt and stop text."""

    text: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """Answer to a `RankAsk`: ids of the nearest documents, nearest first, as many as any metric looks at."""

    documents: tuple[str, ...]


Response = Scored | Generated | Ranked


def ask(item: QualityItem | TrafficItem) -> Ask:
    """What an engine must run to answer an item.

    A choice or label after a plain-text context is set off by one space unless the context ends in
    white space; after chat messages it begins the assistant's turn and stands alone. A plain-text
    prompt that asks for free text is answered on one line: generation stops at the line's end.
    """
    match item:
        case ChooseItem(context=context, choices=choices):
            return ScoreAsk(context, _continuations(context, choices))
        case ClassifyItem(prompt=prompt, labels=labels):
            return ScoreAsk(prompt, _continuations(prompt, labels))
        case PerplexityItem(text=text):
            return ScoreAsk("", (text,))
        case RetrieveItem(query=query, corpus=corpus):
            return RankAsk(query, corpus)
        case GenerateItem(prompt=prompt, max_new_tokens=n):
            return GenerateAsk(prompt, n, ("\n",) if isinstance(prompt, str) else ())
        case TrafficItem(prompt=prompt, max_new_tokens=n):
            return GenerateAsk(prompt, n)


def _continuations(context: Prompt, texts: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(context, str) and not context[-1].isspace():
        return tuple(f" {text}" for text in texts)
    return texts
