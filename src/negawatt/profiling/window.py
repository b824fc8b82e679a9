"""Measuring traffic: the same requests on one or several engines, in turn, with the host watched."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from negawatt.artifact import Tokenizer
from negawatt.energy import Energy
from negawatt.engine import Completion, Engine, Request, Step
from negawatt.errors import EngineError, WorkloadError
from negawatt.meter import Measurement, ProcessMeter
from negawatt.profiling.cascade import Runner, answers_of, engines_of
from negawatt.profiling.cost_model import Cost
from negawatt.profiling.quality import answered, prompt_tokens
from negawatt.profiling.reference_load import reference_load
from negawatt.workload import (
    GenerateItem,
    QualityItem,
    TrafficItem,
    Workload,
    ask,
)

T = TypeVar("T", bound="Request | QualityItem")

NEIGHBOUR_SHARE = 0.10
"""Other processes using more than this share of one core during a window are reported."""
STEAL_SHARE = 0.02
"""A host that withholds more than this share of the time is reported."""
FILLED_ONCE = 32
"""Requests that are enough for one window."""
QUESTIONS = 16
"""Questions that are enough for one window."""
DRIFT = 1.15
"""A reference load whose cost varies by more than this factor is reported."""


Job = Request | QualityItem
"""What joules are counted on: a text to generate, or a question answered by scoring or labelling it."""


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

    @property
    def cpu_s_per_token(self) -> float:
        """CPU seconds for each output, prefill included."""
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
    completions: tuple[Completion, ...] = _done(engine, jobs)["completions"]
    return completions


def _done(engine: Runner, jobs: Sequence[Job]) -> dict[str, Any]:
    """What a window tells of a group of jobs, but for what the meter and the reference load say."""
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
        else:
            answered(each, [job] * n)


def interleave(
    engines: Sequence[Runner],
    rounds: Sequence[Sequence[Sequence[Job]]],
    progress: Callable[[int], None] = lambda done: None,
    enough: Callable[[int], bool] = lambda rounds: False,
) -> list[list[Window]]:
    """Measure engines in turn, the first of each round rotating.

    Args:
        engines: open and warmed up.
        rounds: for each round, for each engine, the group of jobs to run.
        progress: called with the number of windows done.
        enough: asked after each round, with the rounds done, whether the rest can be left out.

    Returns:
        For each engine its windows, one a round: those of one round are a pair (or more).
    """
    windows: list[list[Window]] = [[] for _ in engines]
    done = 0
    for number, groups in enumerate(rounds):
        order = [(number + k) % len(engines) for k in range(len(engines))]
        for position in order:
            windows[position].append(measure(engines[position], groups[position]))
            done += 1
            progress(done)
        if enough(number + 1):
            break
    return windows


@dataclass(frozen=True)
class Summary:
    """What a set of windows says together."""

    windows: tuple[Window, ...]

    @property
    def unit(self) -> str:
        """What outputs are: a ``token`` generated, or an ``answer`` to a question."""
        return self.windows[0].unit

    @property
    def generated(self) -> int:
        return sum(sum(w.outputs) for w in self.windows)

    @property
    def prompted(self) -> int:
        return sum(sum(w.inputs) for w in self.windows)

    @property
    def cpu_s(self) -> float:
        return sum(w.cpu_s for w in self.windows)

    @property
    def steps(self) -> list[Step]:
        return [step for w in self.windows for step in w.steps]

    @property
    def cpu_s_per_token(self) -> float:
        """CPU seconds for each output over all windows."""
        return self.cpu_s / self.generated

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest `cpu_s_per_token` of a window, after division by the reference load."""
        middle = statistics.median(w.reference_s for w in self.windows)
        values = [w.cpu_s_per_token * middle / w.reference_s for w in self.windows]
        return min(values), max(values)

    @property
    def energy(self) -> Energy:
        """Joules of all windows."""
        return Energy.total(w.measurement.energy for w in self.windows)

    @property
    def energy_per_token(self) -> Energy:
        """Joules for each output, prefill included."""
        return self.energy.scaled(1 / self.generated)

    def phase(self, name: str, tokens: int) -> dict[str, Any]:
        """Joules and CPU seconds of one phase, as its share of the CPU time, per `tokens`."""
        total = sum(s.cpu_s for s in self.steps)
        share = sum(s.cpu_s for s in self.steps if s.phase == name) / total
        return {
            "energy": self.energy.scaled(share).to_json(),
            "energy_per_token": self.energy.scaled(share / max(1, tokens)).to_json(),
            "cpu_s_per_token": self.cpu_s * share / max(1, tokens),
            "tokens": tokens,
        }

    @property
    def tokens_per_s(self) -> float:
        return self.generated / sum(w.wall_s for w in self.windows)

    @property
    def ttft_ms(self) -> dict[str, float]:
        """Time from the start of a request's prefill to its first token."""
        return percentiles([1000 * c.token_times_s[0] for c in self._completions])

    @property
    def tpot_ms(self) -> dict[str, float]:
        """Time per output token after the first, of each request."""
        times = [c.token_times_s for c in self._completions if len(c.token_times_s) > 1]
        return percentiles([1000 * (t[-1] - t[0]) / (len(t) - 1) for t in times])

    @property
    def _completions(self) -> list[Completion]:
        return [c for w in self.windows for c in w.completions]

    @property
    def warnings(self) -> list[str]:
        """What disturbed the measurement, in sentences."""
        measured = {x for w in self.windows for x in w.measurement.warnings}
        said = ("meanwhile", "withheld")  # the meter says this of each window; here it is summed up
        found = sorted(x for x in measured if not any(word in x for word in said))
        noisy = [w.neighbour_share for w in self.windows if w.neighbour_share > NEIGHBOUR_SHARE]
        if noisy:
            found.append(
                f"other processes used up to {max(noisy):.0%} of a core in {len(noisy)} of "
                f"{len(self.windows)} windows"
            )
        stolen = sum(w.measurement.steal_s for w in self.windows)
        if stolen > STEAL_SHARE * sum(w.measurement.duration_s for w in self.windows):
            found.append(f"the host withheld {stolen:.1f} CPU-seconds from this virtual machine")
        references = [w.reference_s for w in self.windows]
        if max(references) > DRIFT * min(references):
            found.append(
                f"the host's speed drifted: the reference load cost {1000 * min(references):.1f} to "
                f"{1000 * max(references):.1f} CPU-ms"
            )
        return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``p50`` and ``p95`` by linear interpolation; empty without values."""
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return {"p50": at(0.5), "p95": at(0.95)}
