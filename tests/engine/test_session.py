"""A session with a worker: the real model, joined and left at will, over the pipe that a server speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.batching import Job, Report
from negawatt.engine.link import Link
from negawatt.engine.session import SessionOptions
from negawatt.errors import EngineError, NegawattError, WorkerDied

TEXTS = ("The capital of France is", "One, two, three, four,", "Water boils at a temperature of")


class Log:
    """What a worker told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.cancelled: list[int] = []
        self.idle_cpu_s = 0.0
        self.changed = asyncio.Event()

    def report(self, report: Report) -> None:
        self.reports.append(report)
        self.changed.set()

    def cancel(self, job: int) -> None:
        self.cancelled.append(job)
        self.changed.set()

    def idle(self, cpu_s: float) -> None:
        self.idle_cpu_s += cpu_s

    def tokens(self, job: int) -> list[int]:
        return [picked.token for r in self.reports for j, picked in r.picked if j == job]

    def finished(self) -> set[int]:
        return {job for r in self.reports for job, _ in r.finished}

    async def until(self, condition: object) -> None:
        assert callable(condition)
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 60)


def settings(engine: str) -> Settings:
    return Settings(engine=engine, batch=3, max_context=256, threads=1)


@asynccontextmanager
async def session(
    model: Artifact, engine: str
) -> AsyncIterator[tuple[Link, Log, Engine, asyncio.Task[NegawattError]]]:
    log = Log()
    with Engine(model, settings(engine), session=SessionOptions(3, 768, 7, 32)) as opened:
        link = Link(opened, log.report, log.idle, log.cancel)
        task = asyncio.create_task(link.run())
        await link.connected.wait()
        yield link, log, opened, task
        opened.kill()
        await task


@pytest.mark.parametrize("engine", ["llamacpp", "openvino"])
def test_sequences_that_come_and_go_get_what_they_get_alone(model: Artifact, engine: str) -> None:
    prompts = [model.tokenizer.encode(text) for text in TEXTS]
    with Engine(model, settings(engine).replace(batch=1)) as plain:
        alone = [plain.generate([Request(prompt, 10)]).completions[0].tokens for prompt in prompts]

    async def joined() -> None:
        async with session(model, engine) as (link, log, _, _):
            link.submit(Job(0, prompts[0], 10))
            await log.until(lambda: len(log.tokens(0)) >= 3)
            link.submit(Job(1, prompts[1], 10))
            link.submit(Job(2, prompts[2], 200))
            await log.until(lambda: len(log.tokens(2)) >= 12)
            link.cancel(2)
            await log.until(lambda: 2 in log.cancelled)
            steps = len(log.reports)
            link.submit(Job(3, prompts[0], 10))
            await log.until(lambda: {0, 1, 3} <= log.finished())
            assert [log.tokens(n)[:5] for n in (0, 1, 2, 3)] == [a[:5] for a in [*alone, alone[0]]]
            assert len(log.tokens(0)) == len(log.tokens(3)) == 10
            assert not any(part.job == 2 for report in log.reports[steps:] for part in report.parts)
            cached = {job: n for report in log.reports for job, n in report.started}
            assert cached[3] == len(prompts[0]) - 1  # what job 0 had read

    asyncio.run(joined())


def test_cpu_seconds_of_all_frames_are_those_of_the_process(model: Artifact) -> None:
    async def spend() -> None:
        async with session(model, "llamacpp") as (link, log, engine, _):
            for number, text in enumerate(TEXTS):
                link.submit(Job(number, model.tokenizer.encode(text), 12, temperature=0.8, log_probs=3))
                await log.until(lambda number=number: number in log.finished())
            link.cancel(7)  # is answered, so what came before it has been told
            await log.until(lambda: 7 in log.cancelled)
            with open(f"/proc/{engine.pid}/schedstat") as file:
                main_ns = int(file.read().split()[0])
            told_s = log.idle_cpu_s + sum(report.cpu_s for report in log.reports)
            assert main_ns / 1e9 <= told_s + 0.02  # of the main thread alone
            with open(f"/proc/{engine.pid}/stat") as file:
                fields = file.read().rsplit(") ", 1)[1].split()
            ticks_s = (int(fields[11]) + int(fields[12])) / 100
            assert told_s == pytest.approx(ticks_s, abs=0.05)

    asyncio.run(spend())


def test_a_worker_that_dies_says_so(model: Artifact) -> None:
    async def die() -> None:
        async with session(model, "llamacpp") as (link, log, engine, task):
            link.submit(Job(0, model.tokenizer.encode(TEXTS[0]), 200))
            await log.until(lambda: len(log.tokens(0)) > 2)
            engine.kill()
            assert isinstance(await task, WorkerDied)
            link.submit(Job(1, [1], 1))  # to nobody: harmless

    asyncio.run(die())


def test_a_session_must_be_asked_for_when_the_engine_is_made(model: Artifact) -> None:
    with Engine(model, settings("llamacpp")) as engine:
        with pytest.raises(EngineError, match="without a session"):
            engine.begin_session()
