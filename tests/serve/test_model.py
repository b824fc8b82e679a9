"""A served model's life: receipts that add up, clients that leave, workers that die, hang or sleep."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.engine.host import cpu_s_of
from negawatt.serve import Caller, Estimate, Receipt, Refused
from negawatt.serve.model import ServedModel
from negawatt.serve.options import ModelOptions
from negawatt.serve.server import Server

NAME = "small"
PATH = "/v1/completions"


class Till:
    """A gate that lets everybody in and keeps what is settled, released and charged."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self.held = self.released = 0
        self.lock = threading.Lock()

    def caller(self, authorization: str | None) -> Caller:
        return Caller(authorization or "", priority=1 if authorization == "boss" else 0)

    def reserve(self, caller: Caller, estimate: Estimate) -> Hold:
        with self.lock:
            self.held += 1
        return Hold(self, estimate)

    def charge(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)

    def of(self, outcome: str) -> list[Receipt]:
        return [receipt for receipt in self.receipts if receipt.outcome == outcome]


class Hold:
    def __init__(self, till: Till, estimate: Estimate) -> None:
        self._till, self._ended = till, False
        self.model, self.output_tokens = estimate.model, estimate.output_tokens

    def settle(self, receipt: Receipt) -> None:
        self._end()
        self._till.receipts.append(receipt)

    def release(self) -> None:
        self._end()
        self._till.released += 1

    def _end(self) -> None:
        assert not self._ended, "a reservation ends once"
        self._ended = True
        with self._till.lock:
            self._till.held -= 1


@asynccontextmanager
async def serving(
    model: Artifact, *, batch: int = 3, **changes: Any
) -> AsyncIterator[tuple[Server, ServedModel, Till]]:
    settings = Settings(engine="llamacpp", batch=batch, max_context=512, threads=1)
    options = ModelOptions(settings, **{"warm_up": False, **changes})
    till = Till()
    served = ServedModel(NAME, model, options, till.charge)
    server = Server([served], till)
    await server.start()
    try:
        yield server, served, till
    finally:
        await server.stop()
        assert till.held == 0


def body(text: str = "One, two, three,", tokens: int = 8, **changes: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": text, "max_tokens": tokens, "ignore_eos": True, **changes}


async def ask(server: Server, who: str = "", **changes: Any) -> dict[str, Any]:
    return await server.answer(Caller(who), PATH, body(**changes))


def running(served: ServedModel) -> int:
    assert served._worker is not None
    return served._worker.pid


async def until(condition: Callable[[], bool], most_s: float = 60.0) -> None:
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.005)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def asleep(pid: int) -> bool:
    """Whether all threads of a process wait for something."""
    files = Path(f"/proc/{pid}/task").glob("*/stat")
    return {file.read_text().rpartition(")")[2].split()[0] for file in files} == {"S"}


def woken(pid: int) -> list[str]:
    """How often a process went to sleep and was made to wait."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in status if "ctxt_switches" in line]


def test_all_receipts_with_idle_are_what_the_process_spent(model: Artifact) -> None:
    """A mixed load: joined and cut short, from the cache, given up, several answers to one prompt."""

    async def spend() -> None:
        async with serving(model, warm_up=True) as (server, served, till):
            leavers = [asyncio.create_task(ask(server, text=f"Leaver {n}", tokens=300)) for n in range(2)]
            await until(lambda: sum(t.output_tokens > 0 for t in served._running.values()) == 2)
            work = [
                asyncio.create_task(
                    ask(server, text=f"Item {n}: kettles and boats", tokens=4 + 3 * n, n=1 + n % 2)
                )
                for n in range(8)
            ]
            work += [asyncio.create_task(ask(server, text="The same beginning " * 6)) for _ in range(2)]
            await until(lambda: len(till.of("completed")) > 2)
            for leaver in leavers:
                leaver.cancel()
            await asyncio.gather(*work)
            await asyncio.gather(*leavers, return_exceptions=True)
            await until(lambda: not served.busy)
            served.write_idle("idle")
            spent_s = cpu_s(running(served))
            assert sum(r.cpu_s for r in till.receipts) == pytest.approx(spent_s, abs=0.05)
            assert len(till.of("completed")) == 10
            assert len(till.of("aborted")) == 2
            assert len(till.of("warm-up")) == 1 and till.of("idle")
            joules = sum(r.energy.value_j or 0 for r in till.receipts)
            whole = server.models[NAME]._worker.books._price.since_last(spent_s)  # type: ignore[union-attr]
            assert joules == pytest.approx((whole.dynamic.value_j or 0) + (whole.idle.value_j or 0), rel=0.05)
            assert served.weights is not None and served.weights.source.startswith("fitted")
            assert served.cost is not None and served.cost.decode_call_s + served.cost.decode_token_s > 0

    asyncio.run(spend())


def test_who_leaves_frees_the_slot_within_a_step(model: Artifact) -> None:
    async def leave() -> None:
        async with serving(model) as (server, served, till):
            for _ in range(4):  # three slots, four times
                tasks = [asyncio.create_task(ask(server, text=f"{n}", tokens=400)) for n in range(3)]
                await until(lambda: sum(t.output_tokens > 0 for t in served._running.values()) == 3)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await until(lambda: not served.busy)
            assert served._tasks == {} and served._running == {}
            assert len(till.of("aborted")) == 12
            assert all(0 < r.output_tokens < 400 and r.cpu_s > 0 for r in till.of("aborted"))
            assert (await ask(server))["usage"]["completion_tokens"] == 8

    asyncio.run(leave())


def test_a_worker_killed_in_the_middle_is_there_again(model: Artifact) -> None:
    async def kill() -> None:
        async with serving(model) as (server, served, till):
            first = running(served)
            under_way = [asyncio.create_task(ask(server, text=f"{n}", tokens=400)) for n in range(3)]
            waiting = [asyncio.create_task(ask(server, text=f"later {n}")) for n in range(2)]
            await until(lambda: any(t.output_tokens > 3 for t in served._running.values()))
            os.kill(first, signal.SIGSTOP)
            await asyncio.sleep(0.05)  # what it has said arrives
            first_s = cpu_s_of(first)
            assert first_s is not None
            os.kill(first, signal.SIGKILL)
            for found in await asyncio.gather(*under_way, return_exceptions=True):
                assert isinstance(found, Refused) and found.status == 500
                assert "killed" in str(found) and "not completed" in str(found)
            answers = await asyncio.gather(*waiting, ask(server))
            assert all(answer["usage"]["completion_tokens"] == 8 for answer in answers)
            assert running(served) != first
            failed = till.of("failed")
            assert len(failed) >= 2 and any(r.cpu_s > 0 for r in failed)
            assert len(till.of("completed")) == 3
            await until(lambda: not served.busy)
            served.write_idle("idle")
            second_s = cpu_s_of(running(served))
            assert second_s is not None
            spent_s = sum(r.cpu_s for r in till.receipts)
            assert first_s + second_s - 0.005 < spent_s < first_s + second_s + 0.1  # and what dying took
            [lost] = till.of("lost")  # of the step that it died in
            assert 0 < lost.cpu_s < first_s / 2 and lost.key_id == "" and lost.output_tokens == 0

    asyncio.run(kill())


def test_a_hung_worker_is_not_ready_and_is_replaced(model: Artifact) -> None:
    async def hang() -> None:
        async with serving(model, stall_s=2.0) as (server, served, _):
            assert server.trouble is None
            task = asyncio.create_task(ask(server, tokens=400))
            await until(lambda: any(t.output_tokens for t in served._running.values()))
            os.kill(running(served), signal.SIGSTOP)
            await until(lambda: server.trouble is not None)
            assert "has not stepped" in str(server.trouble)
            with pytest.raises(Refused):
                await task
            assert (await ask(server))["usage"]["completion_tokens"] == 8
            assert server.trouble is None

    asyncio.run(hang())


def test_without_work_the_worker_sleeps_and_wakes(model: Artifact) -> None:
    async def sleep() -> None:
        async with serving(model, sleep_s=0.5) as (server, served, till):
            await ask(server)
            pid = running(served)
            await until(lambda: served.state == "asleep" and served._worker is None)
            assert not Path(f"/proc/{pid}").exists()
            assert server.trouble is None  # it is ready, and loads when it is asked
            assert (await ask(server))["usage"]["completion_tokens"] == 8
            assert running(served) != pid
            assert len(till.of("warm-up")) == 2

    asyncio.run(sleep())


def test_an_idle_worker_does_nothing(model: Artifact) -> None:
    async def idle() -> None:
        async with serving(model) as (server, served, _):
            await ask(server)
            await asyncio.sleep(0.1)
            await until(lambda: asleep(running(served)))  # on a busy machine the end of its work takes longer
            switches = woken(running(served))
            spent = []
            while len(spent) < 5 and min(spent, default=1.0) >= 0.005:
                began = time.thread_time()  # the loop's thread: others are of other tests
                await asyncio.sleep(1.0)
                spent.append(time.thread_time() - began)
            assert woken(running(served)) == switches
            assert min(spent) < 0.005, spent

    asyncio.run(idle())


def test_deadlines_and_full_queues(model: Artifact) -> None:
    async def press() -> None:
        async with serving(model, deadline_s=0.4, queue_limit=2) as (server, served, till):
            tasks = [asyncio.create_task(ask(server, text=f"{n}", tokens=400)) for n in range(12)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            statuses = [exc.status for exc in found if isinstance(exc, Refused)]
            assert statuses.count(504) >= 4 and statuses.count(429) >= 6
            full = next(e for e in found if isinstance(e, Refused) and e.status == 429)
            assert full.retry_after_s is not None and full.retry_after_s >= 1
            # Some of the refused had been let in by the gate before the queue was full.
            assert statuses.count(504) <= len(till.of("aborted")) + till.released <= len(found)
            await until(lambda: not served.busy)

    asyncio.run(press())


def test_keys_take_turns_and_priority_goes_first(model: Artifact) -> None:
    async def queue() -> None:
        async with serving(model, batch=1) as (server, _, till):
            blockers = [asyncio.create_task(ask(server, "x", text=f"b{n}", tokens=30)) for n in range(2)]
            await asyncio.sleep(0.05)
            asks = [("greedy", n) for n in range(6)] + [("modest", 0), ("boss", 0)]
            tasks = [
                asyncio.create_task(
                    server.answer(server.gate.caller(who), PATH, body(text=f"{who} {n}", tokens=6))
                )
                for who, n in asks
            ]
            await asyncio.gather(*blockers, *tasks)
            served = sorted(
                (r for r in till.of("completed") if r.key_id != "x"), key=lambda r: r.created_s + r.queued_s
            )
            order = [r.key_id for r in served]
            assert order.index("boss") == 0
            assert order.index("modest") <= 2

    asyncio.run(queue())


def test_a_model_that_cannot_be_loaded_is_refused_by_name(tmp_path: Path, model: Artifact) -> None:
    async def fail() -> None:
        broken = tmp_path / "model.gguf"
        broken.write_bytes(b"GGUF" + bytes(64))
        till = Till()
        options = ModelOptions(Settings(engine="llamacpp", batch=1, max_context=64, threads=1), warm_up=False)
        served = ServedModel(NAME, model, options, till.charge, prepared=broken)
        with pytest.raises(Exception, match="cannot load"):
            await served.start()
        server = Server([served], till)
        assert "cannot be run" in str(server.trouble)
        with pytest.raises(Refused) as caught:
            await ask(server)
        assert caught.value.status == 503
        await server.stop()

    asyncio.run(fail())


def test_a_worker_that_hangs_while_it_warms_up_is_replaced(model: Artifact) -> None:
    async def hang() -> None:
        settings = Settings(engine="llamacpp", batch=2, max_context=256, threads=1)
        till = Till()
        options = ModelOptions(settings, stall_s=2.0, step_tokens=16)  # so that no step is taken for a hang
        served = ServedModel(NAME, model, options, till.charge)
        server = Server([served], till)
        starting = asyncio.create_task(server.start())
        await until(lambda: served._worker is not None)
        first = running(served)
        os.kill(first, signal.SIGSTOP)
        await starting
        assert running(served) != first and server.trouble is None
        assert (await ask(server))["usage"]["completion_tokens"] == 8
        await server.stop()

    asyncio.run(hang())
