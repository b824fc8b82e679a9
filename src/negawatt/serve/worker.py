"""`Worker`: one model's process as the server sees it: loaded, fed with jobs, priced, ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings, Step
from negawatt.engine.batching import Job, Report
from negawatt.engine.cells import Occupancy
from negawatt.engine.link import Link
from negawatt.engine.session import SessionOptions
from negawatt.errors import NegawattError
from negawatt.meter import energy_of_cpu_time
from negawatt.profiling import CostModel
from negawatt.serve.books import Account, Books
from negawatt.serve.price import CpuTimePrice, price_of

WARM_UP_PROMPTS = (16, 160, 48, 96, 8)
"""Lengths of the prompts that are read alone, to learn what a prompt's tokens cost."""
WARM_UP_TOGETHER = (1, 4, 2)
"""Numbers of sequences that are then written together, to learn what a step costs and what each adds."""
WARM_UP_TOKENS = 8
BEGIN_S = 60.0
"""In so many seconds a worker that has loaded its model says so."""


class Worker:
    """Args:
    artifact, settings, options: what to run, and how.
    on_report, on_cancelled: called from the event loop; see `Link`.
    prepared: what the engine loads, where it was made before.
    embeds: whether it turns texts into vectors.
    most_tokens: of a text that it is warmed up with.

    Attributes:
        books: who owes what (after `open`).
        last_report_s: monotonic time of the latest sign of life.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        options: SessionOptions,
        on_report: Callable[[Report], None],
        on_cancelled: Callable[[int], None],
        *,
        prepared: Path | None = None,
        embeds: bool = False,
        most_tokens: int = 2**31,
    ) -> None:
        self._engine = Engine(artifact, settings, session=options, prepared=prepared)
        self._artifact, self._batch = artifact, options.batch
        self._embeds, self._most_tokens = embeds, most_tokens
        self._on_report, self._on_cancelled = on_report, on_cancelled
        self._link: Link | None = None
        self._watching: Callable[[Report], None] | None = None
        self._told = asyncio.Event()
        self.books = Books(CpuTimePrice())  # until it runs there is nothing that could be counted
        self.last_report_s = time.monotonic()

    @property
    def pid(self) -> int:
        return self._engine.pid

    @property
    def occupancy(self) -> Occupancy:
        """Of its cache, as it last said."""
        return Occupancy() if self._link is None else self._link.occupancy

    async def open(self) -> asyncio.Task[NegawattError]:
        """Start the process and load the model; returns the task that ends when the process does.

        Raises:
            NegawattError: it cannot be loaded.
        """
        await asyncio.to_thread(self._engine.open)
        self.books = Books(price_of(self._engine.pid))
        self.last_report_s = time.monotonic()
        self._link = Link(self._engine, self._report, self._idle, self._on_cancelled)
        running = asyncio.get_running_loop().create_task(self._link.run())
        told = asyncio.ensure_future(self._told.wait())  # what loading has cost
        await asyncio.wait({running, told}, timeout=BEGIN_S, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not self._told.is_set():  # it hangs, or has ended: `running` tells why
            self.kill()
        return running

    def submit(self, job: Job) -> None:
        assert self._link is not None
        self._link.submit(job)

    def cancel(self, job: int) -> None:
        assert self._link is not None
        self._link.cancel(job)

    def kill(self) -> None:
        """End the process now."""
        self._engine.kill()

    async def close(self) -> None:
        """End the process, if it has not ended, and free its memory."""
        self._engine.kill()
        await asyncio.to_thread(self._engine.close)

    def rest(self) -> Account | None:
        """What it spent and did not tell of any more, once it is closed; None where that is not known."""
        whole_cpu_s = self._engine.whole_cpu_s
        return None if whole_cpu_s is None else self.books.rest(whole_cpu_s)

    async def warm_up(self) -> CostModel | None:
        """Read and write a little, so that the first client does not wait and the costs of steps are known.

        Jobs have negative ids. Returns the fitted cost model, or None where the steps do not tell.
        """
        seen: list[Report] = []
        ended = asyncio.Event()
        left: set[int] = set()

        def watch(report: Report) -> None:
            seen.append(report)
            left.difference_update(job for job, _ in report.finished)
            if not left:
                ended.set()

        self._watching = watch
        number = 0
        vocabulary = self._artifact.tokenizer.vocab_size
        for lengths in (*((n,) for n in WARM_UP_PROMPTS), *((4,) * n for n in WARM_UP_TOGETHER)):
            ended.clear()
            for length in lengths[: self._batch]:
                number -= 1
                left.add(number)
                length = min(length, self._most_tokens - WARM_UP_TOKENS)
                tokens = [(7 * i - 31 * number) % (vocabulary - 1) + 1 for i in range(length)]
                written = 0 if self._embeds else 2 if len(lengths) == 1 else WARM_UP_TOKENS
                self.submit(Job(number, tokens, written))
            await ended.wait()
        self._watching = None
        assert self._link is not None
        self._link.forget()
        return _fitted(seen[1:], self._batch)

    async def warmed(self, ended: asyncio.Task[NegawattError], stall_s: float) -> CostModel | None:
        """As `warm_up`, for as long as the worker lives; one that says nothing for `stall_s` is ended.

        Raises:
            NegawattError: it has ended.
        """
        warming = asyncio.ensure_future(self.warm_up())
        while not (warming.done() or ended.done()):
            await asyncio.wait({warming, ended}, timeout=stall_s / 4, return_when=asyncio.FIRST_COMPLETED)
            if time.monotonic() - self.last_report_s > stall_s:
                self.kill()
        if warming.done():
            return warming.result()
        warming.cancel()
        await asyncio.gather(warming, return_exceptions=True)
        raise await ended

    def _report(self, report: Report) -> None:
        self.last_report_s = time.monotonic()
        self.books.step(report)
        if self._watching is not None:
            self._watching(report)
        self._on_report(report)

    def _idle(self, cpu_s: float) -> None:
        self.last_report_s = time.monotonic()
        self.books.idle(cpu_s)
        self._told.set()


def _fitted(reports: list[Report], batch: int) -> CostModel | None:
    """The cost model of steps that were all reading or all writing."""
    steps = []
    for report in reports:
        phases = {part.phase for part in report.parts}
        if len(phases) == 1 and report.cpu_s > 0:
            steps.append(
                Step(
                    phases.pop(), len(report.parts), sum(p.fed for p in report.parts),
                    sum(p.context for p in report.parts), len(report.picked), report.wall_s, report.cpu_s,
                )
            )  # fmt: skip
    try:
        model = CostModel.fit(
            steps, batch=batch, cpu_s=sum(s.cpu_s for s in steps), energy_per_cpu_s=energy_of_cpu_time(1.0)
        )
    except NegawattError:
        return None
    return replace(model, overhead=1.0)
