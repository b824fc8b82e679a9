"""Batches: run when the grid is clean, in time, each request answered once whatever happens."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from negawatt.carbon import CsvIntensity, Factor, IntensitySource
from negawatt.database import Database
from negawatt.energy import Energy
from negawatt.serve import Caller, OpenGate, Refused
from negawatt.serve.batch import Batch, read_items, window_s, work_units
from negawatt.serve.batches import Batches
from negawatt.serve.config import ServerConfig
from negawatt.serve.deferred import PRIORITY, Deferred
from negawatt.serve.files import Files
from negawatt.serve.grid import Grid
from negawatt.serve.server import Server
from negawatt.serve.service import Alone
from negawatt.serve.shifted import shifted

MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)
PATH = "/v1/chat/completions"


def lines(count: int, tokens: int = 100) -> bytes:
    requests = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": PATH,
            "body": {"model": "small", "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]},
        }
        for number in range(count)
    ]
    return "".join(json.dumps(request) + "\n" for request in requests).encode()


def grid_of(folder: Path, hours: list[float], begin: datetime = MIDNIGHT) -> IntensitySource:
    rows = [f"{(begin + i * timedelta(hours=1)).isoformat()},{value}" for i, value in enumerate(hours)]
    (folder / "grid.csv").write_text("\n".join(["start,g_per_kwh", *rows]) + "\n")
    return CsvIntensity(folder / "grid.csv")


class Bench:
    """Batches on a simulated clock: a request takes `each_s` seconds and 36 J, a pause takes no time at all.

    The answers are made up here; everything else is what the server runs.
    """

    def __init__(
        self, folder: Path, source: IntensitySource | Factor | None, database: Database | None = None
    ) -> None:
        self.now_s = MIDNIGHT.timestamp()
        self.database = database or Database(str(folder / "serve.db"))
        self.batches = Batches(self.database, lambda: self.now_s)
        self.files = Files(self.database, folder / "files", lambda: self.now_s)
        self.grid = Grid(source)
        self.each_s = 60.0
        self.asked: list[tuple[float, str, Caller]] = []
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.known: Callable[[str], Caller] = lambda key_id: Caller(key_id, "t", 3)

    async def answer(self, caller: Caller, path: str, body: Any) -> dict[str, Any]:
        assert path == PATH
        custom = f"{body['max_tokens']}"
        if self.before is not None:
            await self.before(custom)
        self.asked.append((self.now_s, custom, caller))
        self.now_s += self.each_s
        energy = Energy.estimated(36.0, 20.0, 60.0, "CPU time")
        return {"id": f"chatcmpl-{len(self.asked)}", "choices": [], "usage": {"energy": energy.to_json()}}

    async def pause(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    def runner(self) -> Deferred:
        return Deferred(
            self.batches,
            self.files,
            self.answer,
            self.grid,
            known=lambda key_id: self.known(key_id),
            parallel=1,
            clock=lambda: self.now_s,
            pause=self.pause,
        )

    def batch(self, content: bytes, window: str = "24h") -> Batch:
        file = self.files.add("team:t", "in.jsonl", "batch", content)
        items, errors = read_items(self.files.path(file), PATH)
        return self.batches.create("team:t", "k", PATH, file.id, window, {}, items, errors)

    async def go(self, runner: Deferred, until: Callable[[], bool], most_turns: int = 5000) -> None:
        for _ in range(most_turns):
            if until():
                return
            if (wait_s := await runner.turn()) > 0:
                await self.pause(wait_s)
        pytest.fail(f"it does not come to an end; last it said: {runner.why}")

    def found(self, batch: Batch) -> Batch:
        found = self.batches.find(batch.id)
        assert found is not None
        return found

    def ended(self, batch: Batch) -> Callable[[], bool]:
        return lambda: self.found(batch).ended_s is not None

    def written(self, batch: Batch, kind: str) -> list[dict[str, Any]]:
        identity = getattr(self.found(batch), f"{kind}_file")
        if identity is None:
            return []
        file = self.files.find("team:t", identity)
        assert file is not None and file.purpose == "batch_output"
        return [json.loads(line) for line in self.files.path(file).read_text().splitlines()]


DAY = [300.0] * 13 + [50.0] * 2 + [300.0] * 33
"""Two clean hours, from 13 to 15 o'clock."""


def test_a_batch_waits_for_the_clean_hours_and_tells_what_that_was_worth(tmp_path: Path) -> None:
    bench = Bench(tmp_path, grid_of(tmp_path, DAY))
    batch = bench.batch(lines(60))  # an hour of work
    asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
    found = bench.found(batch)
    assert (found.status, found.completed, found.failed) == ("completed", 60, 0)
    hours = [int((at - MIDNIGHT.timestamp()) // 3600) for at, _, _ in bench.asked]
    assert hours[0] == 0, "the first one runs at once, to see how long it takes"
    assert set(hours[1:]) <= {13, 14}
    written = bench.written(batch, "output")
    assert [line["custom_id"] for line in written] == [f"c{n}" for n in range(60)]
    assert written[0]["response"]["status_code"] == 200 and written[0]["error"] is None
    told = shifted(found, bench.batches.slices(found), bench.grid, bench.now_s, 300.0)
    assert told.energy.value_j == pytest.approx(60 * 36.0)
    assert told.grams == pytest.approx(36 / 3.6e6 * (59 * 50 + 300))
    assert told.grams_at_once == pytest.approx(60 * 36 / 3.6e6 * 300)
    assert told.grams_best == pytest.approx(60 * 36 / 3.6e6 * 50)
    caller = bench.asked[0][2]
    assert caller.deferred and caller.team == "t" and caller.priority == PRIORITY + 3


def test_it_is_never_late_when_it_takes_longer_than_thought(tmp_path: Path) -> None:
    """Every hour is cleaner than the one before, and requests take longer and longer, a fifth in the end."""
    bench = Bench(tmp_path, grid_of(tmp_path, [300.0 - hour for hour in range(48)]))
    batch = bench.batch(lines(200), "6h")

    async def slower(_: str) -> None:
        bench.each_s *= 1.001

    bench.before = slower
    asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
    found = bench.found(batch)
    assert found.status == "completed"
    assert found.ended_s is not None and found.ended_s <= found.deadline_s


def test_without_a_grid_it_runs_at_once(tmp_path: Path) -> None:
    for number, source in enumerate((None, Factor.estimated(300.0, 200.0, 400.0, "gCO2e/kWh", "stated"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        bench = Bench(folder, source)
        batch = bench.batch(lines(3))
        asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
        assert bench.asked[0][0] == MIDNIGHT.timestamp()
        told = shifted(bench.found(batch), bench.batches.slices(batch), bench.grid, bench.now_s, 300.0)
        assert (told.grams is None) == (source is None)


def test_two_batches_share_the_clean_hours_and_the_earlier_deadline_goes_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, grid_of(tmp_path, DAY))
    late, early = bench.batch(lines(60, 100), "24h"), bench.batch(lines(60, 101), "20h")
    asyncio.run(bench.go(bench.runner(), lambda: bench.ended(late)() and bench.ended(early)()))
    assert [name for _, name, _ in bench.asked] == ["101", "100"] + ["101"] * 59 + ["100"] * 59
    assert {int((at - MIDNIGHT.timestamp()) // 3600) for at, _, _ in bench.asked[2:]} == {13, 14}


def test_a_process_that_ends_at_any_moment_loses_and_doubles_nothing(
    database: Database, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, None, database)
    batch = bench.batch(lines(40))
    real, count = bench.batches.done, 0

    class Killed(BaseException):
        """What stops everything, wherever it is."""

    def dying(*arguments: Any, **named: Any) -> None:
        nonlocal count
        count += 1
        if count % 7 == 3:  # the answer is on disk, and does not count yet
            raise Killed
        real(*arguments, **named)
        if count % 7 == 6:
            raise Killed

    bench.batches.done = dying  # type: ignore[method-assign]
    for _ in range(40):
        if bench.ended(batch)():
            break
        try:
            asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
        except Killed:
            bench.now_s += 61.0  # until the claim of the dead one has run out
    assert count > 42, "it was never killed"
    assert Counter(line["custom_id"] for line in bench.written(batch, "output")) == {
        f"c{n}": 1 for n in range(40)
    }
    assert bench.found(batch).completed == 40
    assert not list(bench.files.folder.glob("*.part"))


def test_only_one_runner_has_a_batch(database: Database, tmp_path: Path) -> None:
    bench = Bench(tmp_path, None, database)
    batch = bench.batch(lines(5))
    first, second = bench.runner(), bench.runner()

    async def both() -> None:
        for _ in range(2):
            await asyncio.gather(first.turn(), second.turn())
        assert len(bench.asked) == 5
        await first.stop()
        await bench.go(second, bench.ended(batch))

    asyncio.run(both())
    assert len(bench.asked) == 5


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, None)
    batch = bench.batch(lines(10))

    async def cancel_after_four(_: str) -> None:
        if len(bench.asked) == 3:
            assert bench.batches.cancel(batch).status == "cancelling"

    bench.before = cancel_after_four
    asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
    assert bench.found(batch).status == "cancelled"
    assert len(bench.written(batch, "output")) == 4
    errors = bench.written(batch, "error")
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 6
    assert bench.batches.cancel(batch).status == "cancelled"


def test_what_was_not_answered_by_the_deadline_expires(tmp_path: Path) -> None:
    bench = Bench(tmp_path, None)
    bench.each_s = 1000.0
    batch = bench.batch(lines(10), "1h")
    asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
    found = bench.found(batch)
    assert found.status == "expired"
    assert (found.completed, found.failed) == (4, 6)
    assert bench.written(batch, "error")[0]["error"]["code"] == "batch_expired"


def test_refusals_are_told_and_what_is_busy_is_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, None)
    batch = bench.batch(lines(3))
    refusals = [
        Refused("busy", status=429, retry_after_s=20.0),
        Refused("too long", status=400, code="context_length_exceeded"),
        Refused("starting", status=503),
    ]

    async def refuse(_: str) -> None:
        if refusals:
            raise refusals.pop(0)

    bench.before = refuse
    asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
    assert bench.asked[0][0] >= MIDNIGHT.timestamp() + 20.0
    [error] = bench.written(batch, "error")
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert len(bench.written(batch, "output")) == 2


def test_the_batch_of_a_revoked_key_fails_and_asks_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, None)

    def revoked(key_id: str) -> Caller:
        raise Refused(f"the key {key_id} holds no longer", status=401)

    bench.known = revoked
    batch = bench.batch(lines(3))
    asyncio.run(bench.go(bench.runner(), bench.ended(batch)))
    assert bench.asked == []
    assert bench.found(batch).failed == 3


def test_the_running_server_sleeps_until_a_batch_comes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, None)
    runner = Deferred(bench.batches, bench.files, bench.answer, bench.grid, clock=lambda: bench.now_s)

    async def live() -> None:
        await runner.start()
        await asyncio.sleep(0.05)
        batch = bench.batch(lines(2))
        runner.wake()
        async with asyncio.timeout(10):
            while not bench.ended(batch)():
                await asyncio.sleep(0.01)
        await runner.stop()

    asyncio.run(live())
    assert len(bench.asked) == 2


def test_a_batch_that_was_cut_off_while_it_was_noted_fails(database: Database, tmp_path: Path) -> None:
    bench = Bench(tmp_path, None, database)
    whole = bench.batch(lines(1200, 1))
    assert [item.number for item in bench.batches.left(whole)] == list(range(1200))
    bench.batches.change(whole, status="validating")
    runner = bench.runner()
    asyncio.run(runner.turn())
    assert bench.found(whole).status == "validating"
    bench.now_s += 601
    asyncio.run(runner.turn())
    told = bench.found(whole).to_json()
    assert told["status"] == "failed" and "anew" in told["errors"]["data"][0]["message"]


BAD_LINES = [
    (b"not json\n", "JSON object"),
    (b"[1]\n", "JSON object"),
    (b'{"custom_id": ""}\n', "custom_id"),
    (lines(1) + lines(1), "same custom_id"),
    (lines(1).replace(b"POST", b"GET"), "method POST"),
    (lines(1).replace(b"/v1/chat", b"/v1/cat"), "url"),
    (lines(1).replace(b'{"model"', b'[{"model"').replace(b"}}\n", b"}]}\n"), "body"),
    (b"[" * 100_000 + b"\n", "within each other"),
    (b"\n\n", "holds no request"),
    (b"\xff\xfe\n", "JSON object"),
]


@pytest.mark.parametrize(("content", "words"), BAD_LINES)
def test_a_file_that_is_wrong_fails_the_batch_with_the_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    bench = Bench(tmp_path, None)
    batch = bench.batch(content)
    told = batch.to_json()
    assert told["status"] == "failed" and told["failed_at"] is not None
    assert words in told["errors"]["data"][0]["message"]


@pytest.mark.parametrize("text", [None, "", "24", "0h", "30s", "32d", "24 h", "99999d", 24])
def test_windows_that_are_none(text: Any) -> None:
    with pytest.raises(Refused, match="completion_window"):
        window_s(text)


def test_work_grows_with_what_is_written_and_read() -> None:
    assert window_s("24h") == 86400 and window_s("90m") == 5400
    small = {"max_tokens": 10, "prompt": "a"}
    assert work_units(small) < work_units({**small, "n": 2}) < work_units({**small, "max_tokens": 1000})
    assert work_units({**small, "prompt": "a" * 1000}) > work_units(small)
    assert work_units({"max_tokens": None, "messages": 5}) > 200


def test_the_grid_fills_the_future_from_the_past(tmp_path: Path) -> None:
    history = [float(100 + (hour % 24 - 13) ** 2) for hour in range(24 * 5)]
    grid = Grid(grid_of(tmp_path, history, MIDNIGHT - timedelta(days=4)))  # known until tomorrow
    now_s = MIDNIGHT.timestamp()
    told = grid.expected(now_s, now_s + 40 * 3600, 3600.0)
    assert told == pytest.approx([100.0 + (hour % 24 - 13) ** 2 for hour in range(40)], abs=1.0)
    assert grid.seen(now_s - 7200, now_s, 3600.0) == [history[-26], history[-25]]
    assert Grid(None).expected(now_s, now_s + 3600, 300) == []
    late = Grid(grid_of(tmp_path, history, MIDNIGHT - timedelta(days=9)))
    assert late.expected(now_s, now_s + 3600, 3600.0) == pytest.approx([269.0], abs=20), (
        "the source lags by days"
    )


def test_told_to_end_a_server_lets_nothing_in_while_its_batches_wait_for_the_database(tmp_path: Path) -> None:
    file = tmp_path / "serve.db"
    server = Server([], OpenGate())
    service = Alone(server, ServerConfig(database=str(file), files=str(tmp_path / "files")))

    async def ended() -> None:
        await service.open()
        server.refuse_new()
        with sqlite3.connect(file, isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            draining = asyncio.create_task(service.drain(5.0))
            await asyncio.sleep(0.2)
            assert not draining.done(), "the batches could be left at once"
            with pytest.raises(Refused, match="shutting down"):
                server.refuse_new()
            other.execute("ROLLBACK")
            await draining
        await service.stop()

    asyncio.run(ended())
    service.close()
