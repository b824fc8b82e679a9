"""Budgets asked from threads: many clients at once, a slow database, clients that leave meanwhile."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from negawatt.artifact import Artifact
from negawatt.database import Database
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.serve import Caller, Estimate, Receipt, Refused
from negawatt.serve.account import Account
from negawatt.serve.budget import Budget, Period, Spending
from negawatt.serve.desk import Desk
from negawatt.serve.gate import KeyGate
from negawatt.serve.ledger import ReceiptLedger
from negawatt.serve.model import ServedModel
from negawatt.serve.options import ModelOptions
from negawatt.serve.server import Server

SECRET = bytes(range(32))
CALLER = Caller(team="t")
CLIENTS = 200


@pytest.fixture
def gate(database: Database) -> Iterator[KeyGate]:
    with closing(KeyGate(None, Account(database, ReceiptLedger(database, SECRET)))) as made:
        yield made


def estimate(energy: Energy) -> Estimate:
    return Estimate("small", 10, 10, energy)


def receipt(number: int, joules: float) -> Receipt:
    return Receipt(
        *(f"r{number}", "", "t", "small", time.time(), "completed", 10, 0, 10),
        prefill=Energy.zero(),
        decode=Energy.estimated(joules, joules, joules, "CPU time"),
        idle=Energy.zero(),
        boundary="chip",
    )


@contextmanager
def kept_waiting(database: Database, lock: str = "holds") -> Iterator[threading.Event]:
    """Another process's transaction holds what writers need, until it is told to end."""
    other, begun, end = Database(database.url), threading.Event(), threading.Event()

    def hold() -> None:
        with other.write(lock):
            begun.set()
            end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(10)
    try:
        yield end
    finally:
        end.set()
        thread.join()
        other.close()


async def come_round(times: int = 100) -> None:
    """The event loop does so, and has other things to do in between."""
    for _ in range(times):
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("known", [True, False], ids=["costs known", "costs unknown"])
def test_two_hundred_clients_race_one_budget_through_the_loop(
    gate: KeyGate, database: Database, known: bool
) -> None:
    """What is let in costs what was held, or less; where costs are unknown one request runs at a time."""
    gate.account.put(Budget("team:t", Period("day"), joules=400.0))
    asked = estimate(
        Energy.estimated(10.0, 5.0, 10.0, "cost model") if known else Energy.missing("not known yet")
    )

    async def race() -> None:
        desk, drawn, let_in, refused = Desk(gate), random.Random(7), list[float](), list[Refused]()

        async def client(number: int) -> None:
            try:
                held = await desk.reserve(CALLER, asked)
            except Refused as exc:
                refused.append(exc)
                return
            await asyncio.sleep(drawn.random() / 50)
            if number % 10 == 0:
                held.release()
                return
            let_in.append(8.0 if known else 30.0)
            held.settle(receipt(number, let_in[-1]))

        await asyncio.gather(*map(client, range(CLIENTS)))
        assert refused and all(r.status == 429 and (r.retry_after_s or 0) >= 1 for r in refused)
        assert gate.clerk.flush(20)
        [use] = gate.account.uses(["team:t"])
        assert use.held == Spending(), "a hold was left behind"
        assert use.spent.joules == pytest.approx(sum(let_in))
        assert use.spent.joules <= 400.0 + (0.0 if known else 30.0)
        if known:
            assert use.spent.joules > 300.0, "refused although there was much left"
        desk.close()

    asyncio.run(race())


def test_a_database_that_takes_its_time_holds_up_nobody_else(gate: KeyGate, database: Database) -> None:
    gate.account.put(Budget("team:t", Period("day"), joules=400.0))
    asked = estimate(Energy.estimated(10.0, 5.0, 10.0, "cost model"))

    async def wait() -> None:
        desk = Desk(gate)
        (await desk.reserve(CALLER, asked)).release()
        assert gate.clerk.flush(10)
        with kept_waiting(database) as end:
            asking = [asyncio.create_task(desk.reserve(CALLER, asked)) for _ in range(8)]
            gone = asyncio.create_task(desk.reserve(CALLER, asked))
            await come_round()
            assert not any(task.done() for task in asking), "the loop stood still until they could be asked"
            assert await desk.caller("Bearer whoever") == Caller()
            gone.cancel()
            asking[0].cancel()
            await asyncio.sleep(0)
            end.set()
            held = await asyncio.gather(*asking[1:])
        for reservation in held:
            reservation.release()
        await asyncio.sleep(0.1)
        assert gate.clerk.flush(10)
        assert gate.account.uses(["team:t"])[0].held == Spending(), "one who left left a hold behind"
        desk.close()

    asyncio.run(wait())


def test_clients_of_a_real_model_race_for_its_tokens(
    gate: KeyGate, database: Database, model: Artifact
) -> None:
    options = ModelOptions(
        Settings("llamacpp", batch=16, max_context=64, threads=1), warm_up=False, queue_limit=2 * CLIENTS
    )

    async def race() -> None:
        served = ServedModel("small", model, options, gate.charge)
        server = Server([served], gate)
        await server.start()
        gate.account.put(Budget("team:t", Period("day"), tokens=150))
        refused: list[Refused] = []

        async def client(number: int) -> int:
            body = {"model": "small", "prompt": f"{number}", "max_tokens": 2, "ignore_eos": True}
            try:
                answer = await server.answer(replace(CALLER, priority=number % 3), "/v1/completions", body)
            except Refused as exc:
                refused.append(exc)
                return 0
            return int(answer["usage"]["total_tokens"])

        tokens = await asyncio.gather(*map(client, range(CLIENTS)))
        assert gate.clerk.flush(20)
        [use] = gate.account.uses(["team:t"])
        assert use.spent.tokens == sum(tokens) <= 150 and use.held == Spending()
        assert use.spent.tokens > 150 - 10 and len(refused) > CLIENTS / 2
        assert {(r.status, r.kind) for r in refused} == {(429, "insufficient_quota")}
        assert server.busy == 0
        await server.stop()

    asyncio.run(race())
