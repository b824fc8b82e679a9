"""Measuring traffic: the same requests on one or several engines, in turn, with the host watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from negawatt.artifact import Tokenizer
from negawatt.engine import Completion, Engine, Request, Step
from negawatt.errors import EngineError, WorkloadError
from negawatt.meter import Measurement, ProcessMeter
from negawatt.profiling.cascade import Runner, answers_of, engines_of
from negawatt.profiling.cost_model import Cost
from negawatt.profiling.quality import Answered, answered, prompt_tokens
from negawatt.profiling.reference_load import reference_load
from negawatt.profiling.retrieval import document_tokens, query_tokens
from negawatt.workload import (
    GenerateItem,
    QualityItem,
    RetrieveItem,
    TrafficItem,
    Workload,
    ask,
)

T = TypeVar("T", bound="Request | QualityItem")

FILLED_ONCE = 32
"""Requests that are enough for one window."""
QUESTIONS = 16
"""Questions that are enough for one window."""
FEW_DOCUMENTS = 4
"""Documents that are embedded in a window of a search at least; they are longer than queries."""


Job = Request | QualityItem
"""What joules are counted on: a text to generate, or a question answered by scoring or labelling it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Texts of one kind in a window of a search.

    Attributes:
        name: ``query`` or ``document``.
        texts: how many were embedded.
        cpu_s: CPU seconds of the worker for them.
        per_output: how many come in use for each output.
    """

    name: str
    texts: int
    cpu_s: float
    per_output: float

    @property
    def cpu_s_per_text(self) -> float:
        return self.cpu_s / self.texts

    @property
    def cpu_s_per_output(self) -> float:
        """CPU seconds that each output has of it."""
        return self.cpu_s_per_text * self.per_output


@dataclass(frozen=True)
class Window:
    """One group of jobs, measured on one engine.

    Attributes:
        inputs: tokens fed for each job's prompt, over all choices where it has some.
        outputs: tokens generated for each; 1 where a question is answered without generating.
        completions: the answers with their times.
        steps: the engine's calls.
        cpu_s: CPU seconds of the worker.
        wall_s: seconds.
        reference_s: cost of the reference load, mean of just before and just after.
        measurement: what the meter says of the worker over the window.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    completions: tuple[Completion, ...]
    steps: tuple[Step, ...]
    cpu_s: float
    wall_s: float
    reference_s: float
    measurement: Measurement
    unit: str = "token"
    """What an output is: a generated ``token``, or an ``answer`` to a question."""
    parts: tuple[Part, ...] = ()
    """Of a search: queries, and documents, of which each query pays the share that it has in use. Together
    they took `cpu_s`."""

    @property
    def cpu_s_per_token(self) -> float:
        """CPU seconds for each output, prefill included."""
        if self.parts:
            return sum(part.cpu_s_per_output for part in self.parts)
        return self.cpu_s / sum(self.outputs)

    @property
    def cost(self) -> Cost:
        return Cost(self.inputs, self.outputs, self.cpu_s)

    @property
    def neighbour_share(self) -> float:
        """CPU time of everything else on the machine, as a share of one core."""
        return self.measurement.other_cpu_s / max(self.measurement.duration_s, 1e-9)


def requests_of(tokenizer: Tokenizer, traffic: Iterable[TrafficItem], max_context: int) -> list[Request]:
    """Traffic as requests of exactly the stated lengths: no token ends the answer early.

    Raises:
        WorkloadError: an item does not fit into `max_context` (named).
    """
    requests = []
    for item in traffic:
        tokens = prompt_tokens(tokenizer, item.prompt)
        if len(tokens) + item.max_new_tokens > max_context:
            raise WorkloadError(
                f"request {item.id!r} needs {len(tokens) + item.max_new_tokens} tokens; "
                f"max_context is {max_context}"
            )
        requests.append(Request(tokens, item.max_new_tokens))
    return requests


def counted_on(workload: Workload) -> Sequence[TrafficItem | QualityItem]:
    """What a workload's joules are counted on: its traffic or, without one, its questions.

    Questions that want a text written become requests for it.

    Raises:
        WorkloadError: there is neither, or some questions want a text and others not.
    """
    if workload.traffic:
        return workload.traffic
    texts = [item for item in workload.quality if isinstance(item, GenerateItem)]
    if texts and len(texts) < len(workload.quality):
        raise WorkloadError(
            f"workload {workload.name} has no traffic, and its questions are of several kinds: give it one"
        )
    if not workload.quality:
        raise WorkloadError(f"workload {workload.name} has no traffic to count joules on")
    return [TrafficItem(t.id, t.prompt, t.max_new_tokens) for t in texts] or workload.quality


def jobs_of(tokenizer: Tokenizer, items: Sequence[TrafficItem | QualityItem], max_context: int) -> list[Job]:
    """Items of `counted_on` as jobs for models of one tokenizer.

    Raises:
        WorkloadError: a request does not fit into `max_context` (named).
    """
    requests = requests_of(tokenizer, [i for i in items if isinstance(i, TrafficItem)], max_context)
    return [*requests, *(item for item in items if not isinstance(item, TrafficItem))]


def _size(job: Job) -> tuple[int, int]:
    """By which jobs are ordered: the length of what is fed, then of what is generated."""
    if isinstance(job, Request):
        return len(job.tokens), job.max_new_tokens
    return len(repr(ask(job))), 1


def spread(jobs: Sequence[T], n: int) -> list[T]:
    """`n` of the jobs, evenly over the range of their lengths; repeated when there are fewer."""
    ordered = sorted(jobs, key=_size)
    if n >= len(ordered):
        return [ordered[i % len(ordered)] for i in range(n)]
    return [ordered[int((i + 0.5) * len(ordered) / n)] for i in range(n)]


def groups_for(jobs: Sequence[T], batch: int, rounds: int, per_round: int) -> list[list[T]]:
    """For each round a group of jobs, together spread over the lengths of the traffic.

    A group has `per_round` jobs or, for batches, enough to fill the batch twice: slots are filled
    again, or prompts of similar length put together, as under load. From a batch of 32 on it is filled
    once: that many answers are a long measurement already. Of questions, each answered within
    milliseconds, there are at least `QUESTIONS`.
    """
    size = per_round if batch == 1 else max(per_round, batch, min(2 * batch, FILLED_ONCE))
    if not isinstance(jobs[0], Request):
        size = max(size, QUESTIONS)
    chosen = spread(jobs, rounds * size)
    return [chosen[number::rounds] for number in range(rounds)]


def measure(engine: Runner, jobs: Sequence[Job]) -> Window:
    """Run a group of jobs, all of one kind, on an open engine, or a cascade of two, under a meter."""
    pid, *others = (each.pid for each in engines_of(engine))
    meter = ProcessMeter(pid, others=others)
    before = reference_load()
    meter.start()
    done = _done(engine, jobs)
    measurement = meter.stop()
    after = reference_load()
    return Window(
        **done, reference_s=(before + after) / 2, measurement=measurement,
        unit="token" if isinstance(jobs[0], Request) else "answer",
    )  # fmt: skip


def completions_of(engine: Runner, jobs: Sequence[Job]) -> tuple[Completion, ...]:
    """The answers to a group of jobs, all of one kind, with their times and nothing else."""
    completions: tuple[Completion, ...] = _done(engine, jobs, documents=False)["completions"]
    return completions


def _done(engine: Runner, jobs: Sequence[Job], *, documents: bool = True) -> dict[str, Any]:
    """What a window tells of a group of jobs, but for what the meter and the reference load say."""
    queries = [job for job in jobs if isinstance(job, RetrieveItem)]
    if len(queries) == len(jobs):
        return _searched(engine, queries, documents=documents)
    return _generated(engine, jobs) if isinstance(jobs[0], Request) else _answered(engine, jobs)


def _generated(engine: Runner, jobs: Sequence[Job]) -> dict[str, Any]:
    requests = [job for job in jobs if isinstance(job, Request)]
    if not isinstance(engine, Engine):
        raise EngineError("a cascade answers questions by choosing, and writes no text")
    generation = engine.generate(requests)
    return {
        "inputs": tuple(len(r.tokens) for r in requests),
        "outputs": tuple(len(c.tokens) for c in generation.completions),
        "completions": tuple(generation.completions),
        "steps": tuple(generation.steps),
        "cpu_s": generation.usage.cpu_s,
        "wall_s": generation.usage.wall_s,
    }


def _searched(engine: Runner, queries: Sequence[RetrieveItem], *, documents: bool) -> dict[str, Any]:
    """Queries embedded, and after them some documents of what they search: both are part of a search.

    What compares vectors is no part of it: over a thousand documents that is less than a thousandth.
    """
    if not isinstance(engine, Engine):
        raise EngineError("a cascade answers questions by choosing, and embeds nothing")
    corpus = queries[0].corpus
    n = min(len(queries), max(FEW_DOCUMENTS, engine.settings.batch)) if documents else 0
    sample = corpus.sample(n, [item.id for item in queries]) if n else []
    model, settings = engine.artifact, engine.settings
    texts = [query_tokens(model, settings, queries), document_tokens(model, settings, sample)]
    found = [engine.embed(each) for each in texts if each]
    asked, *_ = found
    lengths = tuple(len(tokens) for each in texts for tokens in each)
    waits_s = Answered((), lengths[: len(queries)], tuple(asked.steps), 0.0, 0.0).waits_s
    per_output = (1.0, 1 / corpus.queries_per_document)
    kinds = zip(("query", "document"), texts, found, per_output, strict=False)
    return {
        "inputs": lengths,
        "outputs": (1,) * len(queries) + (0,) * n,
        "completions": tuple(Completion(token_times_s=[wait_s]) for wait_s in waits_s),
        "steps": tuple(step for each in found for step in each.steps),
        "cpu_s": sum(each.usage.cpu_s for each in found),
        "wall_s": sum(each.usage.wall_s for each in found),
        "parts": tuple(Part(name, len(t), f.usage.cpu_s, per) for name, t, f, per in kinds),
    }


def _answered(engine: Runner, jobs: Sequence[Job]) -> dict[str, Any]:
    """Questions answered by scoring or labelling. Each waits for the engine call that it was part of."""
    found = answers_of(engine, [job for job in jobs if not isinstance(job, Request)])
    return {
        "inputs": found.fed,
        "outputs": (1,) * len(jobs),
        "completions": tuple(Completion(token_times_s=[wait_s]) for wait_s in found.waits_s),
        "steps": tuple(found.steps),
        "cpu_s": found.cpu_s,
        "wall_s": found.wall_s,
    }


def warm_up(engine: Runner, job: Job) -> None:
    """One short answer, so that caches, thread pools and lazily compiled kernels are in place."""
    for each in engines_of(engine):
        n = min(2, each.settings.batch)
        if isinstance(job, Request):
            each.generate([Request(job.tokens, 4)] * n)
        elif isinstance(job, RetrieveItem):
            each.embed(query_tokens(each.artifact, each.settings, [job] * n))
        else:
            answered(each, [job] * n)


def interleave(
    engines: Sequence[Runner],
    rounds: Sequence[Sequence[Sequence[Job]]],
    progress: Callable[[int], None] = lambda done: None,
    enough: Callable[[int], bool] = lambda rounds: False,
    take: Callable[[int, Sequence[Job]], Window] | None = None,
) -> list[list[Window]]:
    """Measure engines in turn, the first of each round rotating.

    Args:
        engines: open and warmed up.
        rounds: for each round, for each engine, the group of jobs to run.
        progress: called with the number of windows done.
        enough: asked after each round, with the rounds done, whether the rest can be left out.
        take: measures a group on the engine of this number; by default `measure` does.

    Returns:
        For each engine its windows, one a round: those of one round are a pair (or more).
    """
    windows: list[list[Window]] = [[] for _ in engines]
    done = 0
    for number, groups in enumerate(rounds):
        order = [(number + k) % len(engines) for k in range(len(engines))]
        for position in order:
            group = groups[position]
            window = measure(engines[position], group) if take is None else take(position, group)
            windows[position].append(window)
            done += 1
            progress(done)
        if enough(number + 1):
            break
    return windows
