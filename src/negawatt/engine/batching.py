"""`Batching`: many sequences on one backend, admitted and finished at any step.

Each step feeds one token of every sequence that is being written and, in what is left of the step's
tokens, pieces of the prompts that are being read; so a long prompt delays nobody for longer than one step.
An engine whose sequences advance in lockstep gets whole prompts, and new ones only when it is empty.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.cells import Cells, Occupancy
from negawatt.engine.drafter import Drafter
from negawatt.engine.grammar import Constraint, Grammars
from negawatt.engine.ngrams import Lookup, NGrams
from negawatt.engine.picker import Picked, Picker
from negawatt.errors import EngineError, NegawattError

STEP_TOKENS = 256
"""Most tokens of a step, unless more sequences than that are being written."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to write.

    Attributes:
        id: chosen by the caller; unique among those under way.
        tokens: the prompt, at least one token id.
        max_new_tokens: most tokens to generate, at least 1; of a text to embed 0.
        stop_ids: token ids that end the answer (not part of it).
        temperature, top_p, seed, log_probs: see `negawatt.engine.picker.Picker`.
        after: id of a job with the same prompt; this one waits until that has read it, to share it. Of a text
            to embed: id of the first of the same request.
        grammar: that the answer is held to, see `negawatt.engine.grammar`.
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
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence had in a step.

    Attributes:
        job: its id.
        phase: ``prefill`` while its prompt is read, then ``decode``.
        fed: tokens of it that went in.
        context: tokens that the cache held of it before.
        own_cpu_s: CPU seconds of the step that were spent on it alone, such as on its grammar.
    """

    job: int
    phase: str
    fed: int
    context: int
    own_cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in one step.

    Attributes:
        parts: the sequences that took part.
        started: (job, tokens of its prompt that were cached) of those admitted before the step.
        picked: (job, token) in the order of the parts; a stop id is not among them.
        finished: (job, ``stop`` or ``length``).
        embedded: (job, its vector as little-endian 32-bit floats).
        failed: (job, why) of those that cannot go on, though the others can.
        wall_s: duration in seconds.
        cpu_s: CPU seconds of this process, all threads, since the step before or since it was woken.
        beside_cpu_s: those of them that no sequence has to answer for.
    """

    parts: tuple[Part, ...]
    started: tuple[tuple[int, int], ...] = ()
    picked: tuple[tuple[int, Picked], ...] = ()
    finished: tuple[tuple[int, str], ...] = ()
    embedded: tuple[tuple[int, bytes], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()
    wall_s: float = 0.0
    cpu_s: float = 0.0
    beside_cpu_s: float = 0.0


@dataclass(slots=True)
class _Outcome:
    """A `Report` while the step is going on."""

    started: list[tuple[int, int]] = field(default_factory=list)
    picked: list[tuple[int, Picked]] = field(default_factory=list)
    finished: list[tuple[int, str]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)
    beside_cpu_s: float = 0.0

    @property
    def ended(self) -> set[int]:
        return {job for job, _ in (*self.finished, *self.failed)}


@dataclass(slots=True)
class _Live:
    job: Job
    slot: int
    picker: Picker
    read: int  # tokens of the prompt that the cache holds
    length: int  # tokens that the cache holds in all
    history: list[int]  # prompt and answer, where they are looked up
    ngrams: NGrams = field(default_factory=NGrams)
    unfed: list[int] = field(default_factory=list)  # tokens of the answer that the cache does not hold yet
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
        grammars: makes what holds answers to a grammar; called when the first one asks for it.
        drafter: proposes, where the backend's settings name a draft; one sequence at most is then written.
        lookup: how much of what n-grams propose is verified, where the settings say ``ngram``.
    """

    def __init__(
        self,
        backend: Backend,
        cells: Cells,
        batch: int,
        step_tokens: int = STEP_TOKENS,
        grammars: Callable[[], Grammars] | None = None,
        drafter: Drafter | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        self.backend, self.cells, self.batch, self.step_tokens = backend, cells, batch, step_tokens
        self._drafter, self._lookup = drafter, lookup or Lookup.under(backend.settings)
        self._make_grammars = grammars
        self._grammars: Grammars | None = None
        self._waiting: deque[Job] = deque()
        self._live: dict[int, _Live] = {}
        self._cpu_mark_s = time.process_time()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._live or self._waiting)

    @property
    def occupancy(self) -> Occupancy:
        """Of the cache."""
        return self.cells.occupancy

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def cancel(self, job: int) -> None:
        """Forget a job at once; harmless when it has ended already."""
        if (live := self._live.pop(job, None)) is not None:
            self._finish(live)
        else:
            self._waiting = deque(other for other in self._waiting if other.id != job)

    def forget(self) -> None:
        """Empty the prefix cache."""
        self.cells.forget()
        if self._drafter is not None and not self._live:
            self._drafter.forget()

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
        outcome = _Outcome()
        self._admit(outcome)
        chunks, parts, fed = self._plan()
        if chunks:
            begun_s = time.process_time()
            logits = self.backend.forward(chunks)
            spent_s = time.process_time() - begun_s
            verified = []
            for live, chunk, rows in zip(fed, chunks, logits, strict=True):
                self.cells.feed(live.slot, chunk.tokens)
                live.length += len(chunk.tokens)
                if live.reading:
                    self._read(live, len(chunk.tokens))
                try:
                    verified.append(self._pick(live, chunk, rows, outcome, spent_s))
                    self._force(live, outcome)
                except EngineError as exc:  # of this one's grammar
                    outcome.failed.append((live.job.id, str(exc)))
            going_on = sum(part.phase == "decode" for part in parts)
            if self._lookup is not None and len(verified) == going_on == len(parts):
                self._lookup.learn(verified, sum(part.fed for part in parts), spent_s)
            self.cells.passed(going_on)
        parts = [_with_own(part, live) for part, live in zip(parts, fed, strict=True)]
        for job in outcome.ended:
            if (live_or_none := self._live.pop(job, None)) is not None:
                self._finish(live_or_none)
        return Report(
            parts=tuple(parts),
            started=tuple(outcome.started),
            picked=tuple(outcome.picked),
            finished=tuple(outcome.finished),
            failed=tuple(outcome.failed),
            wall_s=time.perf_counter() - begun,
            cpu_s=self.idle_cpu_s(),
            beside_cpu_s=outcome.beside_cpu_s,
        )

    # -- inside ----------------------------------------------------------------------------------

    def _admit(self, outcome: _Outcome) -> None:
        if not self.backend.ragged and self._live:
            return
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
            try:
                constraint = self._constraint(job, outcome)
            except NegawattError as exc:
                self.cells.finish(place.slot)
                outcome.failed.append((job.id, str(exc)))
                continue
            picker = Picker(job.temperature, job.top_p, job.seed, job.log_probs, constraint)
            history = list(job.tokens) if self.backend.settings.speculation != "none" else []
            self._live[job.id] = _Live(job, place.slot, picker, place.cached, place.cached, history)
            outcome.started.append((job.id, place.cached))
        self._waiting.extendleft(reversed(later))

    def _finish(self, live: _Live) -> None:
        self.cells.finish(live.slot)
        if self._drafter is not None:
            self._drafter.finish()

    def _read(self, live: _Live, count: int) -> None:
        """Note what was read of a prompt; a draft model reads it too, where it is to propose anything."""
        live.read += count
        if self._drafter is not None:
            self._drafter.read(live.job.tokens[: live.read], live.job.max_new_tokens - 2)

    def _constraint(self, job: Job, outcome: _Outcome) -> Constraint | None:
        """What holds the job to its grammar, if it has one."""
        if job.grammar is None:
            return None
        if self._grammars is None:
            if self._make_grammars is None:
                raise EngineError("answers of this session cannot be held to a grammar")
            begun_s = time.thread_time()
            self._grammars = self._make_grammars()  # once for all of them
            outcome.beside_cpu_s += time.thread_time() - begun_s
        return self._grammars.constraint(job.grammar)

    def _plan(self) -> tuple[list[Chunk], list[Part], list[_Live]]:
        """The chunks of the next step, what each is, and whose."""
        writing = [live for live in self._live.values() if not live.reading]
        reading = [live for live in self._live.values() if live.reading]
        fed = list(writing)
        chunks = []
        for live, draft in zip(writing, self._proposals(writing), strict=True):
            chunks.append(Chunk(live.slot, [*live.unfed, *draft], rows=1 + len(draft)))
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

    def _proposals(self, writing: Sequence[_Live]) -> list[list[int]]:
        """What may come next in each sequence; of a grammar only what fits it."""
        rooms = [live.job.max_new_tokens - live.written - 1 for live in writing]
        if self._drafter is not None:
            propose = self._drafter.propose
            found = [propose(w.history, r, w.job.stop_ids) for w, r in zip(writing, rooms, strict=True)]
        elif self._lookup is not None:
            found = [w.ngrams.draft(w.history, r) for w, r in zip(writing, rooms, strict=True)]
            found = self._lookup.chosen(found)
        else:
            return [[] for _ in writing]
        rules = [live.picker.constraint for live in writing]
        return [tokens if r is None else r.fitting(tokens) for r, tokens in zip(rules, found, strict=True)]

    def _pick(
        self, live: _Live, chunk: Chunk, rows: Logits, outcome: _Outcome, cpu_s: float
    ) -> tuple[int, int]:
        """Pick after each row while that is what was proposed; the rest of a proposal is taken back.

        Args:
            cpu_s: that the step's call of the engine took.

        Returns:
            How many tokens were proposed, and how many of them were right.
        """
        proposed = chunk.tokens[len(chunk.tokens) - chunk.rows + 1 :]
        before, verifies = len(live.history), live.written > 0
        for place, row in enumerate(rows):
            found = live.picker.pick(row)
            ended = self._take(live, found, outcome)
            live.unfed = [found.token]
            if ended or place >= len(proposed) or found.token != proposed[place]:
                wrong = len(proposed) - place
                if wrong > 0 and not ended:
                    live.length -= wrong
                    self.cells.take_back(live.slot, live.length)
                if self._drafter is not None and verifies:
                    self._drafter.learn(before, len(proposed), place, len(chunk.tokens), cpu_s)
                return len(proposed), place
        return 0, 0

    def _force(self, live: _Live, outcome: _Outcome) -> None:
        """Write what the grammar leaves no choice of; it is fed with the token before it, in one step.

        Whose probabilities were asked for is asked of the model all the same.
        """
        constraint = live.picker.constraint
        if (
            constraint is None or not self.backend.ragged or not live.unfed
            or live.job.log_probs is not None or live.job.id in outcome.ended
        ):  # fmt: skip
            return
        for token in constraint.forced():
            constraint.accept(token)
            live.unfed.append(token)
            if self._take(live, Picked(token), outcome):
                return

    def _take(self, live: _Live, found: Picked, outcome: _Outcome) -> bool:
        """Add a token to an answer; true when that ends it."""
        constraint = live.picker.constraint
        if found.token in live.job.stop_ids or (constraint is not None and found.token in constraint.eos_ids):
            outcome.finished.append((live.job.id, "stop"))
            return True
        outcome.picked.append((live.job.id, found))
        live.written += 1
        if live.history:
            live.history.append(found.token)
        if constraint is not None and constraint.ended:
            outcome.finished.append((live.job.id, "stop"))
            return True
        if live.written >= live.job.max_new_tokens:
            outcome.finished.append((live.job.id, "length"))
            return True
        return False


def _with_own(part: Part, live: _Live) -> Part:
    """The part with what its grammar took, which is then counted."""
    constraint = live.picker.constraint
    if constraint is None or constraint.cpu_s == 0:
        return part
    spent, constraint.cpu_s = constraint.cpu_s, 0.0
    return replace(part, own_cpu_s=spent)
