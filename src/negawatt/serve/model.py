"""`ServedModel`: one model by name, with its queue, its worker and what it owes to whom."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import backends
from negawatt.engine.batching import Report
from negawatt.engine.cells import Occupancy
from negawatt.errors import EngineError, NegawattError, WorkerDied
from negawatt.meter import energy_of_cpu_time
from negawatt.profiling import CostModel
from negawatt.serve.admission import not_ready
from negawatt.serve.calls import form_of
from negawatt.serve.cashier import Cashier
from negawatt.serve.footprint import Footprint
from negawatt.serve.options import ModelOptions
from negawatt.serve.pressure import Pressure, refuse_if_crowded
from negawatt.serve.queue import FairQueue
from negawatt.serve.receipt import Outcome, Receipt
from negawatt.serve.structured import unfit
from negawatt.serve.task import Choice, Sampling, Task
from negawatt.serve.weights import Weights
from negawatt.serve.worker import Worker
from negawatt.serve.writing import Pieces, Writing

AHEAD = 1
"""Jobs that the worker holds beyond those it works on, so that a slot is filled again without a gap."""
IDLE_RECEIPT_S = 60.0
"""What is spent beside all requests is written down at most this often."""
RESTARTS = 3
"""Times that a worker is started anew without having answered anything in between."""


class ServedModel:
    """All methods are called from the event loop.

    Args:
        name: by which clients ask for it.
        charge: called with receipts that nobody reserved: warm-ups and idle time.
        footprint: turns joules into grams, litres and money.
        prepared: what the engine loads, where it was made before.

    Raises:
        NegawattError: the engine has no such settings.

    Attributes:
        listeners: called with every receipt, after it was charged.
        state: ``asleep``, ``loading``, ``ready`` or ``failed``.
        failure: why, when it failed.
        weights: by which steps are shared.
        cost: the fitted cost model, once there is one.
        pooling: how it embeds texts; None where it writes them.
        tokenizer: with the chat template that is in use.
        call_form: how it writes calls of tools.
    """

    def __init__(
        self,
        name: str,
        artifact: Artifact,
        options: ModelOptions,
        charge: Callable[[Receipt], None],
        footprint: Footprint | None = None,
        *,
        prepared: Path | None = None,
    ) -> None:
        backends.backend(options.settings.engine).check(options.settings)
        self.name, self.artifact, self.options = name, artifact, options
        self.pooling = artifact.pooling(options.settings.pooling)
        self.listeners: list[Callable[[Receipt], None]] = []
        self._cashier = Cashier(name, self._charged, footprint or Footprint())
        self._charge, self._prepared = charge, prepared
        self.state = "asleep"
        self.failure: NegawattError | None = None
        self.weights: Weights | None = None
        self.cost: CostModel | None = None
        self.created_s = int(time.time())
        self._queue: FairQueue[Task] = FairQueue()
        self._tasks: dict[int, tuple[Task, Choice]] = {}  # by job
        self._running: dict[str, Task] = {}
        self._numbers = itertools.count()
        self._worker: Worker | None = None
        self._starting: Worker | None = None  # the same, from before it is loaded
        self._life: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.tokenizer = options.tokenizer(artifact)
        self.call_form = form_of(self.tokenizer.chat_template)
        self._pressure, self._pieces = Pressure(), Pieces(self.tokenizer)
        self._stopping = self._answered = False

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the model.

        Raises:
            NegawattError: it cannot be loaded.
        """
        self._wake()
        while self.state == "loading" and self._life is not None and not self._life.done():
            await asyncio.sleep(0.01)
        if self.failure is not None:
            raise self.failure

    async def stop(self) -> None:
        """End the worker; what is under way is told so."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._starting is not None:
            self._starting.kill()
        if self._life is not None:
            await self._life
        self._fail_all(EngineError("the server was stopped"))

    @property
    def busy(self) -> int:
        """Requests under way or waiting."""
        return len(self._running) + len(self._queue)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def stalled(self) -> bool:
        """Whether there is work and has been no sign of life for long."""
        if self.state != "ready" or self._worker is None or not self._running:
            return False
        return time.monotonic() - self._worker.last_report_s > self.options.stall_s / 2

    @property
    def held(self) -> tuple[int, int, Occupancy]:
        """Sequences that the worker has, those that are charged to somebody, and what its cache holds."""
        if (worker := self._worker) is None:
            return len(self._tasks), 0, Occupancy()
        return len(self._tasks), len(worker.books), worker.occupancy

    def _wake(self) -> None:
        if self._life is None or self._life.done():
            self.state, self.failure = "loading", None
            self._life = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        """Keep a worker until the model is put to sleep, the server stops, or it cannot be kept."""
        tries = 0
        while not self._stopping and tries < RESTARTS:
            self.state = "loading"
            worker = self._starting = Worker(
                self.artifact, self.options.settings, self.options.session, self._on_report,
                self._on_cancelled, prepared=self._prepared, embeds=self.pooling is not None,
                most_tokens=self.most_tokens,
            )  # fmt: skip
            try:
                ended = await worker.open()
                self._worker = worker
                await self._make_ready(worker, ended)
                died = await ended
                died = self.failure or died  # that it hung tells more than that it was killed for it
            except NegawattError as exc:
                died = exc
            at_work = bool(self._running) or self.state == "loading"
            self._fail_running(died)
            self.write_idle("idle")
            self._worker = None
            await worker.close()
            if (rest := worker.rest()) is not None:
                self._cashier.of_nobody(rest, "lost" if at_work and not self._stopping else "idle")
            if self.state == "asleep":
                if not self._queue:
                    return
                continue
            self.failure = died
            if not isinstance(died, WorkerDied):
                break
            tries = 0 if self._answered else tries + 1
            self._answered = False
        self.state = "failed"
        self._fail_all(self.failure or EngineError(f"{self.name} cannot be kept running"))

    async def _make_ready(self, worker: Worker, ended: asyncio.Task[NegawattError]) -> None:
        if self._stopping:
            worker.kill()
        if self.weights is not None:
            worker.books.weights = self.weights
        elif self.options.warm_up:
            self.cost = await worker.warmed(ended, self.options.stall_s)
            if self.cost is not None:
                worker.books.weights = self.weights = Weights.fitted(self.cost)
        self.write_idle("warm-up")
        self.state, self.failure = "ready", None
        self._feed()
        self._watch()

    # -- requests --------------------------------------------------------------------------------

    @property
    def most_tokens(self) -> int:
        """Of prompt and answer together, at most."""
        most = min(self.options.settings.max_context, self.options.session.capacity)
        return most if self.pooling is None else min(most, self.pooling.max_tokens or most)

    def choices(self, prompts: list[list[int]], n: int, sampling: Sampling) -> list[Choice]:
        """The answers to write to `prompts`, `n` each."""
        return [
            Choice(number, next(self._numbers), prompt, Writing(self.tokenizer, sampling.stop))
            for number, prompt in enumerate(prompt for prompt in prompts for _ in range(n))
        ]

    def estimate(self, prompts: list[list[int]], n: int, max_tokens: int) -> Energy:
        """Joules of a request at most, by the cost model at batch 1; missing before there is one."""
        if self.cost is None:
            return Energy.missing("the model's costs are not known yet")
        cpu_s = sum(self.cost.request_cpu_s(len(p), max_tokens * n, 1) for p in prompts)
        return energy_of_cpu_time(cpu_s)

    def check_room(self, tokens: int = 0) -> None:
        """Refuse at once what would wait too long.

        Args:
            tokens: of prompt and answers together, at most, where they are known.

        Raises:
            Refused: too many wait, or for too long (429), or the model cannot be loaded (503).
        """
        if self.state == "failed":
            raise not_ready(self.name, self.failure)
        refuse_if_crowded(self.name, self.options, self.expected_wait_s(tokens), len(self._queue))

    def expected_wait_s(self, tokens: int = 0) -> float:
        """Seconds that a request of so many tokens, 0 for unknown, would wait now until it is begun."""
        return self._pressure.expected_s(self.options, self._tasks.values(), self._queue, tokens)

    def submit(self, task: Task) -> None:
        """Queue a request; it is settled in the end, whatever happens."""
        self._queue.put(
            task, key=task.caller.key_id, priority=task.caller.priority, cost=float(task.most_tokens)
        )
        if self.state in ("asleep", "failed"):
            self._wake()
        self._feed()

    def abort(self, task: Task, outcome: Outcome = "aborted", error: NegawattError | None = None) -> None:
        """Give a request up; its slots are free within one step. Harmless when it has ended."""
        if task.settled.is_set() or task.outcome is not None:
            return
        task.outcome, task.error = outcome, error
        if self._queue.remove(task):
            self._settle(task)
            return
        for job in task.unfinished:
            if self._worker is not None:
                self._worker.cancel(job)

    def _feed(self) -> None:
        """Hand waiting requests to the worker, as many as it can work on and one more."""
        if self.state != "ready" or self._worker is None:
            return
        while self._under_way < self.options.settings.batch + AHEAD:
            task = self._queue.take()
            if task is None:
                break
            if not self._running:  # it was idle until now, not hung
                self._worker.last_report_s = time.monotonic()
            self._running[task.id] = task
            for choice, job in task.jobs(self.tokenizer.eos_ids, embeds=self.pooling is not None):
                self._tasks[choice.job] = task, choice
                self._worker.books.open(choice.job, task.account)
                self._worker.submit(job)
        if self._timer is None:
            self._watch()

    @property
    def _under_way(self) -> int:
        """What the worker holds: answers; of texts to embed, which take turns there, their requests."""
        return len(self._tasks) if self.pooling is None else len(self._running)

    # -- what the worker tells ---------------------------------------------------------------------

    def _on_report(self, report: Report) -> None:
        now = time.monotonic()
        self._pressure.step(report)
        for job, cached in report.started:
            if (found := self._tasks.get(job)) is not None:
                found[0].start(found[1], cached, now - report.wall_s)
        for job, picked in report.picked:
            if (found := self._tasks.get(job)) is not None:
                task, choice = found
                task.first_token_s = task.first_token_s or now
                if task.write(choice, picked, self._pieces) and self._worker is not None:
                    self._worker.cancel(job)
        for job, vector in report.embedded:
            if (found := self._tasks.get(job)) is not None:
                found[1].vector = vector
        for job, why in report.failed:
            if (found := self._tasks.get(job)) is not None:
                self._give_up(found[0], job, why)
        for job, reason in report.finished:
            if (found := self._tasks.get(job)) is not None:
                task, choice = found
                task.finish(choice, reason)
                self._pressure.answered(choice.tokens)
                self._job_ended(job)
        self._feed()

    def _give_up(self, task: Task, job: int, why: str) -> None:
        """One of the answers cannot be written as it has to be; the others are not wanted then."""
        task.unfinished.discard(job)
        self.abort(task, "failed", unfit(why))
        self._job_ended(job)

    def _on_cancelled(self, job: int) -> None:
        if job in self._tasks:
            self._job_ended(job)
            self._feed()

    def _job_ended(self, job: int) -> None:
        task, _ = self._tasks.pop(job)
        task.unfinished.discard(job)
        if not task.unfinished:
            self._settle(task)

    # -- receipts --------------------------------------------------------------------------------

    def _settle(self, task: Task) -> None:
        self._running.pop(task.id, None)
        if self._worker is not None:
            self._worker.books.close(choice.job for choice in task.choices)
        outcome = task.outcome or task.verdict
        receipt = self._cashier.receipt(task, outcome)
        if outcome != "completed" and receipt.cpu_s == 0 and task.started_s is None:
            task.reservation.release()
        else:
            task.reservation.settle(receipt)
        self._answered = self._answered or outcome == "completed"
        task.receipt = receipt
        task.end()
        for listener in self.listeners:
            listener(receipt)
        if time.time() - self._cashier.beside_since_s > IDLE_RECEIPT_S:
            self.write_idle("idle")

    def _charged(self, receipt: Receipt) -> None:
        self._charge(receipt)
        for listener in self.listeners:
            listener(receipt)

    def write_idle(self, outcome: Outcome = "idle") -> None:
        """Write down what the worker spent beside all requests since the last time."""
        if self._worker is not None:
            self._cashier.beside(self._worker.books, outcome)

    # -- trouble ---------------------------------------------------------------------------------

    def _fail_running(self, why: NegawattError) -> None:
        """The worker has died: nobody that it worked for gets more; those it had not begun wait again."""
        for task in list(self._running.values()):
            for choice in task.choices:
                self._tasks.pop(choice.job, None)
            if task.started_s is None and task.outcome is None and not self._stopping:
                del self._running[task.id]
                self._queue.put(task, key=task.caller.key_id, priority=task.caller.priority, cost=0.0)
                continue
            task.outcome = task.outcome or "failed"
            task.error = task.error or why
            self._settle(task)

    def _fail_all(self, why: NegawattError) -> None:
        """Nobody gets anything any more."""
        self._fail_running(why)
        while (task := self._queue.take()) is not None:
            task.outcome, task.error = "failed", why
            self._settle(task)

    def _watch(self) -> None:
        """Look again after a while: does the worker hang, or may it sleep? Else there is no timer."""
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._worker is None or self._stopping:
            return
        quiet_s = time.monotonic() - self._worker.last_report_s
        if self._running:
            if quiet_s > self.options.stall_s:
                self.failure = WorkerDied(f"{self.name} gave no sign of life for {quiet_s:.0f} s")
                self._worker.kill()
                return
            self._timer = loop.call_later(self.options.stall_s / 4, self._watch)
        elif self.options.sleep_s is not None and not self._queue:
            if quiet_s >= self.options.sleep_s:
                self.state = "asleep"
                self._worker.kill()
                return
            self._timer = loop.call_later(self.options.sleep_s - quiet_s + 0.01, self._watch)
