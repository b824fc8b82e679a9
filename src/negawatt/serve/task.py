"""`Task`: one request under way, from the queue to its receipt."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from negawatt.engine.batching import Job
from negawatt.engine.picker import Picked
from negawatt.errors import NegawattError
from negawatt.serve.admission import Caller, Reservation
from negawatt.serve.books import Account
from negawatt.serve.calls import Calls
from negawatt.serve.receipt import Outcome, Receipt
from negawatt.serve.writing import Pieces, TokenInfo, Writing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are written; see `negawatt.engine.batching.Job` and the API's fields of these names."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    log_probs: int | None = None
    ignore_eos: bool = False
    grammar: str | None = None


@dataclass(slots=True)
class Choice:
    """One of the answers to a request.

    Attributes:
        index: its place among them.
        job: id of the sequence that writes it.
        prompt: token ids.
        writing: its text so far.
        tokens: how many were generated.
        log_probs: one for each token, where they were asked for.
        finish_reason: ``stop`` or ``length`` once it has ended.
        vector: of a text to embed, as little-endian 32-bit floats.
    """

    index: int
    job: int
    prompt: Sequence[int]
    writing: Writing
    tokens: int = 0
    log_probs: list[TokenInfo] = field(default_factory=list)
    finish_reason: str | None = None
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class Delta:
    """What a streamed answer gained."""

    choice: Choice
    text: str
    log_probs: Sequence[TokenInfo]


class Task:
    """Attributes:
    id: of the request, as the client is told it.
    caller, reservation: who asked, and what was held for it.
    choices: its answers.
    calls: how its answers may call tools; None where they may not.
    least_confidence: with less its answers are not good enough; None: any are.
    attempts: receipts of what was tried before it.
    account: what it owes.
    receipt: once it has been settled.
    """

    def __init__(
        self,
        id: str,
        caller: Caller,
        reservation: Reservation,
        choices: list[Choice],
        sampling: Sampling,
        *,
        streams: bool,
        calls: Calls | None = None,
        least_confidence: float | None = None,
        attempts: tuple[Receipt, ...] = (),
    ) -> None:
        self.id, self.caller, self.reservation = id, caller, reservation
        self.choices, self.sampling, self.streams = choices, sampling, streams
        self.calls, self.least_confidence, self.attempts = calls, least_confidence, attempts
        self.account = Account()
        self.receipt: Receipt | None = None
        self.created_s = time.time()
        self.arrived_s = time.monotonic()
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.cached_tokens = 0
        self.outcome: Outcome | None = None
        self.error: NegawattError | None = None
        self.unfinished = {choice.job for choice in choices}
        """Jobs that the worker may still work on."""
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self.settled = asyncio.Event()

    @property
    def input_tokens(self) -> int:
        """Tokens of its prompts, each counted once however many answers it has."""
        return sum(len(prompt) for prompt in {id(c.prompt): c.prompt for c in self.choices}.values())

    @property
    def output_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    @property
    def most_tokens(self) -> int:
        """Of prompt and answers together, at most: the work it asks for."""
        return sum(len(c.prompt) + self.sampling.max_tokens for c in self.choices)

    @property
    def confidence(self) -> float:
        """Mean log-probability of a token of its answers, in nats; minus infinity where there is none."""
        told = [info.log_prob for choice in self.choices for info in choice.log_probs]
        return sum(told) / len(told) if told else -math.inf

    @property
    def verdict(self) -> Outcome:
        """How it ended, where nothing went wrong."""
        sure = self.least_confidence is None or self.confidence >= self.least_confidence
        return "completed" if sure else "escalated"

    def jobs(self, eos: frozenset[int], *, embeds: bool) -> Iterator[tuple[Choice, Job]]:
        """Its choices with what the worker is asked to do for each.

        Args:
            eos: tokens that end an answer.
            embeds: whether texts are turned into vectors.
        """
        sampling, leaders = self.sampling, dict[int, int]()
        for choice in self.choices:
            seed = sampling.seed if sampling.seed is not None else choice.job ^ int(self.created_s * 1000)
            after = self.choices[0].job if embeds else leaders.setdefault(id(choice.prompt), choice.job)
            yield (
                choice,
                Job(
                    choice.job,
                    choice.prompt,
                    sampling.max_tokens,
                    frozenset() if sampling.ignore_eos else eos,
                    sampling.temperature,
                    sampling.top_p,
                    (seed + choice.index) % 2**63,
                    sampling.log_probs,
                    after,
                    sampling.grammar,
                ),
            )

    def start(self, choice: Choice, cached: int, now_s: float) -> None:
        """A choice was admitted, `cached` tokens of its prompt being there already."""
        self.started_s = self.started_s or now_s
        if not any(other.prompt is choice.prompt for other in self.choices[: choice.index]):
            self.cached_tokens += cached

    def write(self, choice: Choice, picked: Picked, pieces: Pieces) -> bool:
        """Add a token to a choice; true when that completed a stop string, and nothing more is wanted."""
        choice.tokens += 1
        if choice.finish_reason is not None:
            return False
        text = choice.writing.push(picked.token)
        infos = [] if picked.log_prob is None else [pieces.info(picked)]
        choice.log_probs += infos
        if choice.writing.stopped:
            choice.finish_reason = "stop"
        if text or infos or choice.finish_reason:
            self.push(choice, text, infos)
        return choice.writing.stopped

    def finish(self, choice: Choice, reason: str) -> None:
        """The engine has ended a choice: ``stop`` or ``length``."""
        if choice.finish_reason is None:
            rest = choice.writing.finish()
            choice.finish_reason = "stop" if choice.writing.stopped else reason
            self.push(choice, rest, ())

    def push(self, choice: Choice, text: str, log_probs: Sequence[TokenInfo]) -> None:
        """Hand a streaming client what is new."""
        if self.streams:
            self._deltas.put_nowait(Delta(choice, text, log_probs))

    def end(self) -> None:
        """Nothing more comes."""
        self._deltas.put_nowait(None)
        self.settled.set()

    async def next_deltas(self) -> list[Delta]:
        """What a streamed answer has gained since, at least one piece; nothing at its end."""
        return await come(self._deltas)


async def come(queue: asyncio.Queue[T | None]) -> list[T]:
    """What has come in a queue that ends with None, at least one piece; nothing at its end."""
    found = [await queue.get()]
    while not queue.empty():
        found.append(queue.get_nowait())
    if found[-1] is None and len(found) > 1:
        queue.put_nowait(None)  # the end is told on its own
    return [piece for piece in found if piece is not None]
