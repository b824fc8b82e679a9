"""`Batching`: many sequences on one backend, admitted and finished at any step.

Each step feeds one token of every sequence that is being written and, in what is left of the step's
tokens, pieces of the prompts that are being read; so a long prompt delays nobody for longer than one step.
An engine whose sequences advance in lockstep gets whole prompts, and new ones only when it is empty.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.cells import Cells
from negawatt.engine.ngrams import NGrams
from negawatt.engine.picker import Picked, Picker

STEP_TOKENS = 256
"""Most tokens of a step, unless more sequences than that are being written."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to write.

    Attributes:
        id: chosen by the caller; unique among those under way.
        tokens: the prompt, at least one token id.
        max_new_tokens: most tokens to generate, at least 1.
        stop_ids: token ids that end the answer (not part of it).
        temperature, top_p, seed, log_probs: see `negawatt.engine.picker.Picker`.
        after: id of a job with the same prompt; this one waits until that has read it, to share it.
    """

    id: int
    tokens: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    log_probs: int | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence had in a step.

    Attributes:
        job: its id.
        phase: ``prefill`` while its prompt is read, then ``decode``.
        fed: tokens of it that went in.
        context: tokens that the cache held of it before.
    """

    job: int
    phase: str
    fed: int
    context: int


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in one step.

    Attributes:
        parts: the sequences that took part.
        started: (job, tokens of its prompt that were cached) of those admitted before the step.
        picked: (job, token) in the order of the parts; a stop id is not among them.
        finished: (job, ``stop`` or ``length``).
        wall_s: duration in seconds.
        cpu_s: CPU seconds of this process, all threads, since the step before or since it was woken.
    """

    parts: tuple[Part, ...]
    started: tuple[tuple[int, int], ...] = ()
    picked: tuple[tuple[int, Picked], ...] = ()
    finished: tuple[tuple[int, str], ...] = ()
    wall_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class _Live:
    job: Job
    slot: int
    picker: Picker
    read: int  # tokens of the prompt that the cache holds
    length: int  # tokens that the cache holds in all
    history: list[int]  # prompt and answer, where they are looked up
    ngrams: NGrams | None
    last: int = -1
    written: int = 0

    @property
    def reading(self) -> bool:
        return self.read < len(self.job.tokens)


class Batching:
    """See the module's text.

    Args:
        backend: loaded.
        cells: the book over its cache.
        batch: most sequences at once.
        step_tokens: most tokens of a step.
    """

    def __init__(self, backend: Backend, cells: Cells, batch: int, step_tokens: int = STEP_TOKENS) -> None:
        self.backend, self.cells, self.batch, self.step_tokens = backend, cells, batch, step_tokens
        self._waiting: deque[Job] = deque()
        self._live: dict[int, _Live] = {}
        self._cpu_mark_s = time.process_time()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._live or self._waiting)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def cancel(self, job: int) -> None:
        """Forget a job at once; harmless when it has ended already."""
        if (live := self._live.pop(job, None)) is not None:
            self.cells.finish(live.slot)
        else:
            self._waiting = deque(other for other in self._waiting if other.id != job)

    def idle_cpu_s(self) -> float:
        """CPU seconds since the last step or call of this: what was spent on no sequence."""
        now = time.process_time()
        spent, self._cpu_mark_s = now - self._cpu_mark_s, now
        return spent

    def step(self) -> Report:
        """Admit what fits, feed the engine once, and pick a token of every sequence that is far enough.

        Raises:
            EngineError: the engine failed; none of the sequences can go on.
        """
        begun = time.perf_counter()
        started = self._admit()
        chunks, parts, fed = self._plan()
        picked: list[tuple[int, Picked]] = []
        finished: list[tuple[int, str]] = []
        if chunks:
            logits = self.backend.forward(chunks)
            for live, chunk, rows in zip(fed, chunks, logits, strict=True):
                self.cells.feed(live.slot, chunk.tokens)
                live.length += len(chunk.tokens)
                if live.reading:
                    live.read += len(chunk.tokens)
                self._pick(live, chunk, rows, picked, finished)
            self.cells.passed(sum(part.phase == "decode" for part in parts))
        for job, _ in finished:
            self.cells.finish(self._live.pop(job).slot)
        now = time.perf_counter()
        return Report(
            tuple(parts), tuple(started), tuple(picked), tuple(finished), now - begun, self.idle_cpu_s()
        )

    # -- inside ----------------------------------------------------------------------------------

    def _admit(self) -> list[tuple[int, int]]:
        started: list[tuple[int, int]] = []
        if not self.backend.ragged and self._live:
            return started
        later: deque[Job] = deque()
        while self._waiting and len(self._live) < self.batch:
            job = self._waiting.popleft()
            leader = self._live.get(job.after) if job.after is not None else None
            if leader is not None and leader.reading and self.backend.shares:
                later.append(job)
                continue
            place = self.cells.place(job.tokens, len(job.tokens) + job.max_new_tokens)
            if place is None:  # nobody overtakes: a long prompt is not starved by short ones
                self._waiting.appendleft(job)
                break
            picker = Picker(job.temperature, job.top_p, job.seed, job.log_probs)
            ngrams = NGrams() if self.backend.settings.speculation == "ngram" else None
            history = list(job.tokens) if ngrams else []
            self._live[job.id] = _Live(job, place.slot, picker, place.cached, place.cached, history, ngrams)
            started.append((job.id, place.cached))
        self._waiting.extendleft(reversed(later))
        return started

    def _plan(self) -> tuple[list[Chunk], list[Part], list[_Live]]:
        """The chunks of the next step, what each is, and whose."""
        writing = [live for live in self._live.values() if not live.reading]
        reading = [live for live in self._live.values() if live.reading]
        fed = list(writing)
        chunks = []
        for live in writing:
            tokens = [live.last]
            if live.ngrams is not None:
                tokens += live.ngrams.draft(live.history, live.job.max_new_tokens - live.written - 1)
            chunks.append(Chunk(live.slot, tokens, rows=len(tokens)))
        room = self.step_tokens - sum(len(chunk.tokens) for chunk in chunks)
        for live in reading:
            left = len(live.job.tokens) - live.read
            take = min(left, room) if self.backend.ragged else left
            if take <= 0 and chunks:
                break
            take = max(take, 1)
            piece = live.job.tokens[live.read : live.read + take]
            chunks.append(Chunk(live.slot, piece, rows=int(take == left)))
            fed.append(live)
            room -= take
        parts = [
            Part(live.job.id, "prefill" if live.reading else "decode", len(chunk.tokens), live.length)
            for live, chunk in zip(fed, chunks, strict=True)
        ]
        return chunks, parts, fed

    def _pick(
        self,
        live: _Live,
        chunk: Chunk,
        rows: Logits,
        picked: list[tuple[int, Picked]],
        finished: list[tuple[int, str]],
    ) -> None:
        """Pick after each row while that is what was proposed; the rest of a proposal is taken back."""
        proposed = chunk.tokens[1:] if len(chunk.tokens) == chunk.rows else ()
        ended = False
        for place, row in enumerate(rows):
            found = live.picker.pick(row)
            ended = self._take(live, found, picked, finished)
            if ended or place >= len(proposed) or found.token != proposed[place]:
                wrong = len(proposed) - place
                if wrong > 0 and live.job.id not in {job for job, _ in finished}:
                    live.length -= wrong
                    self.cells.take_back(live.slot, live.length)
                return

    def _take(
        self, live: _Live, found: Picked, picked: list[tuple[int, Picked]], finished: list[tuple[int, str]]
    ) -> bool:
        """Add a token to an answer; true when that ends it."""
        if found.token in live.job.stop_ids:
            finished.append((live.job.id, "stop"))
            return True
        picked.append((live.job.id, found))
        live.last = found.token
        live.written += 1
        if live.ngrams is not None:
            live.history.append(found.token)
        if live.written >= live.job.max_new_tokens:
            finished.append((live.job.id, "length"))
            return True
        return False
