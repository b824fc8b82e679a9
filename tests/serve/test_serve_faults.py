"""A whole server in trouble: workers that die or hang, clients that leave, too many of them, and restarts.

The scenarios are those of ``benchmarks/serve_faults.py``, in short.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_server import MODEL, Books, Live, ask, body_of
from negawatt.artifact import Artifact
from negawatt.serve.budget import Budget, Period
from serve_faults import (
    HELD,
    arrivals,
    cannot_be_had,
    clients,
    idle,
    kill,
    known_answers,
    leftovers,
    restart,
)

BATCH, CONTEXT = 4, 512
OPTIONS = (
    *("--port", "0", "--batch", str(BATCH), "--threads", "1", "--max-context", str(CONTEXT)),
    *("--no-warm-up",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def books(folder: Path) -> Iterator[Books]:
    opened = Books(folder)
    opened.account.put(Budget("server", Period("day"), requests=1e9))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def live(model: Artifact, folder: Path, books: Books) -> Iterator[Live]:
    with Live(folder, MODEL, *OPTIONS) as server:
        yield server


def test_a_worker_that_is_killed_tells_every_client_and_is_there_again(live: Live, books: Books) -> None:
    async def die() -> None:
        before = await ask(live.address, body_of("Once upon a time", 4))
        assert before.energy is not None
        killed = await kill(live, BATCH)
        assert killed.again_s < 20.0
        for answer in killed.answers:
            assert answer.error is not None and answer.error["code"] == "engine_failed"
            assert "killed" in answer.error["message"] and "/" not in answer.error["message"]
        streamed, whole = killed.answers[::2], killed.answers[1::2]
        assert {a.status for a in streamed} == {200}, "an event of the stream tells of the error"
        assert not any(a.whole for a in streamed), "what was cut off does not pass for an answer"
        assert {a.status for a in whole} == {500}
        found = await idle(live)
        assert not any(found[name] for name in HELD), found
        receipts = list(books.ledger.receipts())
        assert before.energy["receipt"]["id"] in {r.id for r in receipts}
        outcomes = Counter(r.outcome for r in receipts)
        assert outcomes["failed"] == BATCH and outcomes["lost"] == 1
        assert books.ledger.verify().faults == ()
        assert books.account.uses(["server"])[0].held.requests == 0

    asyncio.run(die())


def test_a_worker_that_stops_stepping_is_not_ready_and_leaves_nobody_hanging(
    model: Artifact, tmp_path: Path
) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f'[[model]]\nartifact = "{MODEL}"\nstall_s = 3.0\n')

    async def stall() -> None:
        with Live(tmp_path, "--config", str(config), *OPTIONS) as server:
            stalled = await kill(server, 2, signal.SIGSTOP)  # it was not ready, and answers again
            found = await idle(server)
        for answer in stalled.answers:
            assert answer.error is not None and "no sign of life" in answer.error["message"]
        assert not any(found[name] for name in HELD), found

    asyncio.run(stall())


def test_clients_that_leave_at_any_moment_leave_nothing_behind(live: Live, books: Books) -> None:
    async def leave() -> None:
        left = await leftovers(live, books, 300)
        assert left.pop("descriptors") < 10, "connections to the database are pooled, and may be some more"
        assert {name: count for name, count in left.items() if count > 0} == {}
        assert await cannot_be_had(live, BATCH, CONTEXT) == [], "cells of the cache are lost"
        outcomes = Counter(r.outcome for r in books.ledger.receipts())
        assert outcomes["aborted"] > 0, "all of them left before they were begun"

    asyncio.run(leave())


def test_under_ten_times_the_load_some_are_answered_and_the_others_told_when_to_come(
    model: Artifact, tmp_path: Path
) -> None:
    async def press() -> None:
        with Live(tmp_path, MODEL, *OPTIONS, "--max-wait", "0") as server:
            known = await known_answers(server, 20)
            full = await clients(server, known, BATCH, 2.0)
            capacity = len(full.of(200)) / full.over_s
            load = await arrivals(server, known, 10 * capacity, 5.0)
            found = await idle(server)
        answered, refused = load.of(200), load.of(429)
        assert len(answered) + len(refused) == len(load.answers), "something else came back"
        assert len(answered) > capacity, "it collapsed"
        assert len(refused) > len(answered)
        assert load.wrong == [] and all(a.whole for a in answered)
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.error is not None and answer.error["code"] == "overloaded"
        assert sum(a.whole_s < 0.1 for a in refused) > 0.5 * len(refused)
        assert not any(found[name] for name in HELD), found

    asyncio.run(press())


def test_restarts_under_load_lose_no_request(model: Artifact, tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.account.put(Budget("server", Period("day"), requests=1e9))
    options = (MODEL, *OPTIONS, "--handover", str(tmp_path / "handover"))
    told = asyncio.run(restart(tmp_path, options, 3))
    assert told.failed == [] and told.wrong == 0 and told.codes == [0, 0, 0]
    outcomes = Counter(receipt.outcome for receipt in books.ledger.receipts())
    assert outcomes["completed"] == told.answered + 20  # and the known answers
    assert set(outcomes) <= {"completed", "idle", "warm-up"}
    assert books.ledger.verify().faults == ()
    [use] = books.account.uses(["server"])
    assert use.spent.requests == outcomes["completed"] and use.held.requests == 0
    assert not (tmp_path / "handover").exists()
    books.close()
