"""The loop over `Backend.forward` that prefills, samples, stops, batches, streams and speculates.

Written once for all engines. Every step is timed in wall and CPU seconds of this process (all
threads), so that energy can be attributed to phases and, later, to the sequences of each step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.drafter import Drafter
from negawatt.engine.ngrams import Lookup, NGrams
from negawatt.engine.padding import together

SCORE_TOKENS_PER_STEP = 512
"""Scoring gathers sequences up to this many tokens into one step."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate.

    Attributes:
        tokens: the prompt, at least one token id.
        max_new_tokens: most tokens to generate, at least 1.
        stop_ids: token ids that end the answer (not part of it). Empty: always `max_new_tokens`.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_p: nucleus: sample among the likeliest tokens that hold this probability together.
        seed: of the sampler; the same seed gives the same tokens on the same engine.
    """

    tokens: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the engine.

    Attributes:
        phase: ``prefill`` or ``decode``.
        sequences: how many sequences took part.
        tokens: tokens fed, over all sequences.
        context: tokens held by those sequences before the step, summed.
        produced: tokens of answers that the step yielded.
        wall_s: duration in seconds.
        cpu_s: CPU seconds of the worker process, all threads, what a draft model took for it included.
    """

    phase: str
    sequences: int
    tokens: int
    context: int
    produced: int
    wall_s: float
    cpu_s: float


@dataclass(slots=True)
class Completion:
    """The answer to one `Request`.

    Attributes:
        tokens: generated ids, without the stop id.
        finish_reason: ``stop`` or ``length``.
        token_times_s: for each token, seconds from the start of the request's prefill.
        queued_s: seconds from the start of the call to the start of the prefill.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    token_times_s: list[float] = field(default_factory=list)
    queued_s: float = 0.0


TokenCallback = Callable[[int, int], None]
"""Called with (index of the request, token id) as each token is produced."""


class _Sequence:
    """A request while it is being generated."""

    def __init__(self, index: int, request: Request, started: float, queued_s: float) -> None:
        self.index, self.request, self.started = index, request, started
        self.completion = Completion(queued_s=queued_s)
        self.length = 0  # tokens that the engine holds
        self.history = list(request.tokens)
        self.random = np.random.default_rng(request.seed) if request.temperature > 0 else None
        self.pending: list[int] = []  # picked in the last step, not yet handed out
        self.ngrams = NGrams()

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token from one row of logits."""
        if self.random is None:
            return int(logits.argmax())
        scaled = (logits.astype(np.float64) - float(logits.max())) / self.request.temperature
        probabilities = np.exp(scaled)
        probabilities /= probabilities.sum()
        if self.request.top_p < 1.0:
            order = np.argsort(-probabilities)
            kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), self.request.top_p)) + 1]
            nucleus = probabilities[kept] / probabilities[kept].sum()
            return int(self.random.choice(kept, p=nucleus))
        return int(self.random.choice(len(probabilities), p=probabilities))

    def accept(self, token: int, now: float) -> bool:
        """Add a token to the answer; True when the answer is finished."""
        if token in self.request.stop_ids:
            self.completion.finish_reason = "stop"
            return True
        self.completion.tokens.append(token)
        self.completion.token_times_s.append(now - self.started)
        self.history.append(token)
        return len(self.completion.tokens) >= self.request.max_new_tokens

    @property
    def room(self) -> int:
        """Tokens that can be proposed: one more is always written by the model itself."""
        return self.request.max_new_tokens - len(self.completion.tokens) - 1

    def proposals(self, drafter: Drafter | None) -> list[int]:
        """Tokens that may come next: a draft model's, or those that followed the last n-gram before."""
        if self.random is not None:
            return []
        if drafter is not None:
            return drafter.propose(self.history, self.room, self.request.stop_ids)
        return self.ngrams.draft(self.history, self.room)


class Decoder:
    """Generates and scores on one loaded backend, keeping a `Step` for every engine call.

    Args:
        drafter: proposes, where the backend's settings name a draft.
        lookup: how much of what n-grams propose is verified, where the settings say ``ngram``.
    """

    def __init__(
        self, backend: Backend, drafter: Drafter | None = None, lookup: Lookup | None = None
    ) -> None:
        self.backend, self.drafter = backend, drafter
        self.lookup = lookup or Lookup.under(backend.settings)
        self.steps: list[Step] = []

    def _forward(self, phase: str, chunks: list[Chunk], context: int, produced: int) -> list[Logits]:
        begun = _now()
        logits = self.backend.forward(chunks)
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        sequences = len({chunk.slot for chunk in chunks})
        self.steps.append(Step(phase, sequences, tokens, context, produced, *_since(begun)))
        return logits

    # -- generation ------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], on_token: TokenCallback | None = None
    ) -> list[Completion]:
        """Answer all requests, at most ``settings.batch`` at once, in order of arrival.

        An engine that pads a batch to its longest prompt gets prompts of similar length together.
        """
        start = time.perf_counter()
        arrived = list(enumerate(requests))
        if not self.backend.ragged and self.backend.settings.batch > 1:
            arrived.sort(key=lambda pair: len(pair[1].tokens))
        waiting = deque(arrived)
        live: dict[int, _Sequence] = {}
        done: list[Completion] = [Completion() for _ in requests]
        try:
            while waiting or live:
                if waiting and (
                    not live or (self.backend.ragged and len(live) < self.backend.settings.batch)
                ):
                    self._admit(waiting, live, start)
                else:
                    self._advance(live)
                self._settle(live, done, on_token)
        finally:
            for slot in live:
                self._release(slot)
        return done

    def _admit(self, waiting: deque[tuple[int, Request]], live: dict[int, _Sequence], start: float) -> None:
        """Prefill as many waiting requests as there are free slots; each yields its first token."""
        free = [slot for slot in range(self.backend.settings.batch) if slot not in live]
        now = time.perf_counter()
        admitted = {}
        for slot in free[: len(waiting)]:
            index, request = waiting.popleft()
            admitted[slot] = live[slot] = _Sequence(index, request, now, now - start)
        chunks = [Chunk(slot, sequence.request.tokens) for slot, sequence in admitted.items()]
        logits = self._forward("prefill", chunks, 0, len(chunks))
        for (_, sequence), rows in zip(admitted.items(), logits, strict=True):
            sequence.length = len(sequence.request.tokens)
            sequence.pending = [sequence.pick(rows[-1])]
            if self.drafter is not None and sequence.random is None:
                begun = _now()
                self.drafter.read(sequence.request.tokens, sequence.room - 1)
                self.steps[-1] = _and(self.steps[-1], _since(begun))

    def _release(self, slot: int) -> None:
        self.backend.release(slot)
        if self.drafter is not None:
            self.drafter.finish()

    def _advance(self, live: dict[int, _Sequence]) -> None:
        """One decoding step of all live sequences."""
        context = sum(sequence.length for sequence in live.values())
        if self.backend.settings.speculation != "none":
            self._advance_speculatively(live, context)
            return
        chunks = [Chunk(slot, [sequence.history[-1]]) for slot, sequence in live.items()]
        logits = self._forward("decode", chunks, context, len(chunks))
        for sequence, rows in zip(live.values(), logits, strict=True):
            sequence.length += 1
            sequence.pending = [sequence.pick(rows[-1])]

    def _advance_speculatively(self, live: dict[int, _Sequence], context: int) -> None:
        """Feed each sequence its last token and proposals; keep what the model would have said itself.

        A proposed token is kept when it is the very token picked from the logits before it, so greedy
        answers are the same as without proposals; where tokens are drawn nothing is proposed.
        """
        begun = _now()
        found = [sequence.proposals(self.drafter) for sequence in live.values()]
        proposed = found if self.lookup is None else self.lookup.chosen(found)
        fed = {slot: [s.history[-1], *more] for (slot, s), more in zip(live.items(), proposed, strict=True)}
        proposing = _since(begun)
        chunks = [Chunk(slot, tokens, rows=len(tokens)) for slot, tokens in fed.items()]
        logits = self._forward("decode", chunks, context, 0)
        produced, call_s = 0, self.steps[-1].cpu_s
        verified = []
        for (slot, sequence), rows in zip(live.items(), logits, strict=True):
            tokens = fed[slot]
            picked = [sequence.pick(rows[0])]
            while len(picked) < len(tokens) and picked[-1] == tokens[len(picked)]:
                picked.append(sequence.pick(rows[len(picked)]))
            sequence.length += len(picked)
            if len(picked) < len(tokens):
                self.backend.truncate(slot, sequence.length)
            sequence.pending = picked
            produced += len(picked)
            verified.append((len(tokens) - 1, len(picked) - 1))
            if self.drafter is not None and sequence.random is None:
                self.drafter.learn(len(sequence.history), *verified[-1], len(tokens), call_s)
        if self.lookup is not None:
            self.lookup.learn(verified, sum(map(len, fed.values())), call_s)
        self.steps[-1] = replace(_and(self.steps[-1], proposing), produced=produced)

    def _settle(
        self, live: dict[int, _Sequence], done: list[Completion], on_token: TokenCallback | None
    ) -> None:
        """Hand out the tokens of the last step; release the slots of finished sequences."""
        now = time.perf_counter()
        for slot, sequence in list(live.items()):
            for token in sequence.pending:
                before = len(sequence.completion.tokens)
                finished = sequence.accept(token, now)
                if on_token is not None and len(sequence.completion.tokens) > before:
                    on_token(sequence.index, token)
                if finished:
                    done[sequence.index] = sequence.completion
                    self._release(slot)
                    del live[slot]
                    break
            sequence.pending = []

    # -- scoring ---------------------------------------------------------------------------------

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[float], bool]]:
        """Log-probability (nats) of each token of a continuation given what precedes it.

        Args:
            pairs: (context, continuation), each at least one token.

        Returns:
            For each pair the list of log-probabilities, and whether greedy decoding of the context
            would have written exactly this continuation.
        """
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        results: list[tuple[list[float], bool]] = [([], True)] * len(pairs)
        position = 0
        while position < len(order):  # similar lengths together: little padding, full steps
            group: list[int] = []
            tokens = 0
            while position < len(order) and len(group) < self.backend.settings.batch:
                length = sum(map(len, pairs[order[position]])) - 1
                if group and tokens + length > SCORE_TOKENS_PER_STEP:
                    break
                group.append(order[position])
                tokens += length
                position += 1
            chunks = []
            for slot, index in enumerate(group):
                context, continuation = pairs[index]
                chunks.append(Chunk(slot, [*context, *continuation][:-1], rows=len(continuation)))
            logits = self._forward("prefill", chunks, 0, 0)
            for index, rows in zip(group, logits, strict=True):
                results[index] = _log_probabilities(rows, pairs[index][1])
            for slot in range(len(group)):
                self.backend.release(slot)
        return results

    def classify(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Log-probabilities of the labels of each text in nats, shape ``(len(texts), labels)``."""
        rows = self.embed(texts)
        found: NDArray[np.float32] = rows - _log_sum_exp(rows)[:, None]
        return found

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The row that the backend has for each whole text, shape ``(len(texts), vocab_size)``."""
        found = np.empty((len(texts), self.backend.vocab_size), np.float32)
        for group in together([len(text) for text in texts], self.backend.settings.batch):
            chunks = [Chunk(slot, texts[index]) for slot, index in enumerate(group)]
            for index, rows in zip(group, self._forward("prefill", chunks, 0, 0), strict=True):
                found[index] = rows[0]
        return found

    def distributions(self, tokens: Sequence[int], decoded: int = 0) -> NDArray[np.float32]:
        """Log-probabilities of all tokens after each position, shape ``(len(tokens), vocab_size)``.

        Args:
            tokens: one text.
            decoded: how many of the last tokens are fed in steps of their own, as generation does: each
                then sees those before it through the cache.
        """
        first = len(tokens) - decoded
        fed = [tokens[:first], *([token] for token in tokens[first:])]
        parts = []
        for number, part in enumerate(fed):
            phase = "decode" if number else "prefill"
            (rows,) = self._forward(phase, [Chunk(0, part, rows=len(part))], 0, 0)
            parts.append((rows - _log_sum_exp(rows)[:, None]).astype(np.float32))
        self.backend.release(0)
        return np.concatenate(parts)


def _now() -> tuple[float, float]:
    """Wall time and CPU time of this process in seconds."""
    return time.perf_counter(), time.process_time()


def _since(begun: tuple[float, float]) -> tuple[float, float]:
    wall_s, cpu_s = _now()
    return wall_s - begun[0], cpu_s - begun[1]


def _and(step: Step, spent: tuple[float, float]) -> Step:
    """The step with what was spent on it beside the model's call: wall and CPU seconds."""
    return replace(step, wall_s=step.wall_s + spent[0], cpu_s=step.cpu_s + spent[1])


def _log_sum_exp(rows: Logits) -> NDArray[np.float32]:
    top = rows.max(axis=1)
    total: NDArray[np.float32] = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return total


def _log_probabilities(rows: Logits, continuation: Sequence[int]) -> tuple[list[float], bool]:
    chosen = rows[np.arange(len(continuation)), list(continuation)]
    log_probabilities = chosen - _log_sum_exp(rows)
    greedy = bool((rows.argmax(axis=1) == np.asarray(continuation)).all())
    return [float(x) for x in log_probabilities], greedy
