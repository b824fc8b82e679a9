"""`Deferred`: runs batches when the grid is clean, and never so late that they would not be done in time."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from negawatt.energy import Energy
from negawatt.errors import NegawattError
from negawatt.serve.admission import Caller, Refused
from negawatt.serve.batch import Batch, Item, Slice
from negawatt.serve.batches import Batches
from negawatt.serve.deferral import Pending, choose
from negawatt.serve.files import Files
from negawatt.serve.grid import Grid
from negawatt.serve.limits import error_document

SLOT_S = 300.0
"""So often it is decided anew whether to run."""
CLAIM_S = 60.0
"""A batch whose runner is not heard of for this long is taken over by another."""
TROUBLE_S = 10.0
"""After a fault it is tried again."""
LEAVE_S = 10.0
"""Neither what is under way nor the database holds up the end of a server for longer."""
SPARE_S = 30.0
"""Batches are planned to be done this long before their deadline."""
PRIORITY = -1000
"""Of requests from batches: whatever a client waits for goes first."""

Answer = Callable[[Caller, str, Any], Awaitable[dict[str, Any]]]
"""Answers a body that was sent to a path, for a caller; raises `Refused` where it cannot."""

T = TypeVar("T")

_log = logging.getLogger("negawatt.serve.deferred")


@dataclass(slots=True)
class _Run:
    """A while in which a batch runs: from its first request to the end of its last, and what they cost."""

    start_s: float
    end_s: float = 0.0
    spent: list[Energy] = field(default_factory=list)
    units: float = 0.0


class Deferred:
    """Takes batches from the database and runs them, the earliest deadline first, a few requests at once.

    What was answered is on disk before it counts as done, so a process that is killed loses at most the
    requests it was working on, and those are asked again. Requests that are under way when running stops
    being cheap are finished; no new one is begun. The first few of each batch run at once: how long they
    take tells how long the rest will.

    Args:
        batches, files: where they are.
        answer: what answers a request.
        grid: tells when running is cheap.
        known: the caller of a key; raises `Refused` when the key holds no longer.
        parallel: requests at once.
        slot_s: see `SLOT_S`.
        clock: seconds since the epoch.
        pause: waits for so many seconds, or for `wake`.
    """

    def __init__(
        self,
        batches: Batches,
        files: Files,
        answer: Answer,
        grid: Grid,
        *,
        known: Callable[[str], Caller] = lambda key_id: Caller(key_id),
        parallel: int = 4,
        slot_s: float = SLOT_S,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self._batches, self._files, self._answer, self._grid = batches, files, answer, grid
        self._known, self._parallel, self._slot_s = known, parallel, slot_s
        self._clock, self._pause = clock, pause or self._wait
        self._id = secrets.token_hex(8)
        self._woken = asyncio.Event()
        self._stopping = False
        self._held_until_s: dict[str, float] = {}
        self._trimmed: set[str] = set()
        self._noting = threading.Lock()
        self._life: asyncio.Task[None] | None = None
        self.why = "nothing to do"

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with what an earlier process left, and with what comes."""
        self._life = asyncio.get_running_loop().create_task(self.run())

    async def stop(self) -> None:
        """Give up what is under way, and leave all batches to whoever comes next; once is enough."""
        if self._stopping:
            return
        self._stopping = True
        self.wake()
        if self._life is not None:
            self._life.cancel()
            if (await asyncio.wait({self._life}, timeout=LEAVE_S))[1]:
                _log.error("batches did not stop within %g s", LEAVE_S)
        try:
            async with asyncio.timeout(LEAVE_S):
                await asyncio.to_thread(self._batches.leave, self._id)
        except (NegawattError, TimeoutError) as exc:  # whoever comes next waits until the claim has run out
            _log.error("batches cannot be left to others now: %s", str(exc) or "no answer")

    def wake(self) -> None:
        """Look again now: a batch was made or is to be cancelled."""
        self._woken.set()

    async def run(self) -> None:
        """Until it is stopped."""
        renewal = asyncio.ensure_future(self._renew())
        try:
            while not self._stopping:
                try:
                    wait_s = await self.turn()
                except NegawattError as exc:
                    _log.error("batches cannot be run now: %s", exc)
                    wait_s = TROUBLE_S
                except Exception:  # noqa: BLE001  a fault in one batch must not end all others
                    _log.exception("a turn of the batches failed")
                    wait_s = TROUBLE_S
                if wait_s > 0 and not self._stopping:
                    await self._pause(wait_s)
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    async def _wait(self, seconds: float) -> None:
        self._woken.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    # -- a turn -----------------------------------------------------------------------------------

    async def turn(self) -> float:
        """Decide, run until the slot ends if that is the decision, and say how many seconds to wait then."""
        now_s = self._clock()
        work, paces = await _whole(self._look, now_s)
        if not work:
            self.why = "nothing to do"
            return CLAIM_S / 3
        end_s = (now_s // self._slot_s + 1) * self._slot_s
        if unknown := [(b, items[: self._parallel]) for b, items in work if paces[b.id] is None]:
            self.why = "first requests"
            return await self._run_until(unknown, end_s)
        pending = [
            Pending(sum(i.units for i in items) / (paces[batch.id] or 1.0), batch.deadline_s - SPARE_S)
            for batch, items in work
        ]
        furthest_s = max(batch.deadline_s for batch, _ in work)
        rates = await asyncio.to_thread(self._grid.expected, now_s, furthest_s, self._slot_s)
        choice = choose(now_s, pending, rates, self._slot_s)
        self.why = choice.why
        return await self._run_until(work, end_s) if choice.runs else end_s - now_s

    def _look(self, now_s: float) -> tuple[list[tuple[Batch, list[Item]]], dict[str, float | None]]:
        """Batches that are to run with what is left of each, and their paces; the others are ended."""
        self._batches.claim(self._id, CLAIM_S)
        work: list[tuple[Batch, list[Item]]] = []
        for batch in self._batches.active(self._id):
            items = self._batches.left(batch)
            if batch.status == "cancelling":
                self._end(batch, "cancelled", items)
            elif not items:
                self._end(batch, "completed", items)
            elif now_s >= batch.deadline_s:
                self._end(batch, "expired", items)
            else:
                work.append((batch, items))
        return work, {batch.id: _pace(self._batches.slices(batch)) for batch, _ in work}

    async def _run_until(self, work: list[tuple[Batch, list[Item]]], until_s: float) -> float:
        """Begin requests until a time, finish them, and say how many seconds nothing can be done then."""
        waiting = deque((batch, item) for batch, items in work for item in items)
        runs: dict[str, _Run] = {}
        running: set[asyncio.Task[None]] = set()
        try:
            while waiting or running:
                while waiting and len(running) < self._parallel and self._clock() < until_s:
                    batch, item = waiting.popleft()
                    if await asyncio.to_thread(self._may_go_on, batch):
                        if batch.id not in runs:
                            runs[batch.id] = _Run(self._clock())
                            if batch.began_s is None:
                                await _whole(self._batches.change, batch, began_s=self._clock())
                        running.add(asyncio.ensure_future(self._one(batch, item, runs[batch.id])))
                if not running:
                    break
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for batch, _ in work:
                if (run := runs.get(batch.id)) is not None and run.spent and run.end_s > run.start_s:
                    part = Slice(run.start_s, run.end_s, Energy.total(run.spent), run.units)
                    await _whole(self._batches.ran, batch, part)
        now_s = self._clock()
        held_s = [self._held_until_s.get(batch.id, 0.0) - now_s for batch, _ in work]
        return max(0.0, min(held_s))

    def _may_go_on(self, batch: Batch) -> bool:
        if self._held_until_s.get(batch.id, 0.0) > self._clock() or self._clock() >= batch.deadline_s:
            return False
        found = self._batches.find(batch.id)
        return found is not None and found.status == "in_progress" and found.runner == self._id

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_S / 3)
            try:
                await _whole(self._batches.claim, self._id, CLAIM_S)
            except NegawattError as exc:  # a claim lasts for two more tries
                _log.error("batches cannot be claimed now: %s", exc)

    # -- a request --------------------------------------------------------------------------------

    async def _one(self, batch: Batch, item: Item, run: _Run) -> None:
        """Ask one request and note its answer; one that cannot be asked now stays to be asked again."""
        path = self._files.folder / batch.input_file
        request_id = f"batch_req_{secrets.token_hex(12)}"
        try:
            request = await asyncio.to_thread(_line, path, item)
            caller = await asyncio.to_thread(self._known, batch.key_id)
            caller = replace(caller, deferred=True, priority=PRIORITY + caller.priority)
            async with asyncio.timeout(max(0.0, batch.deadline_s - self._clock())):
                body = await self._answer(caller, batch.endpoint, request)
        except TimeoutError:
            return  # the next turn finds that the deadline has passed
        except Refused as exc:
            if exc.status in (429, 503):
                self._held_until_s[batch.id] = self._clock() + min(max(exc.retry_after_s or 1.0, 1.0), 60.0)
                return
            body = error_document(exc)
            await self._noted(batch, item, _answered(item, request_id, exc.status, body), failed=True)
        except NegawattError as exc:
            body = error_document(Refused(str(exc), status=500, kind="server_error"))
            await self._noted(batch, item, _answered(item, request_id, 500, body), failed=True)
        except (OSError, ValueError) as exc:
            _log.error("a request of %s cannot be read: %s", batch.id, type(exc).__name__)
            gone = _failed(item, request_id, "file_gone", "the input file is gone")
            await self._noted(batch, item, gone, failed=True)
        else:
            run.spent.append(_energy(body))
            run.units += item.units
            run.end_s = self._clock()
            await self._noted(batch, item, _answered(item, request_id, 200, body), failed=False)

    async def _noted(self, batch: Batch, item: Item, line: dict[str, Any], *, failed: bool) -> None:
        await _whole(self._note, batch, item, line, failed=failed)

    def _note(self, batch: Batch, item: Item, line: dict[str, Any], *, failed: bool) -> None:
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        # What counts is the beginning of a part, so lines are counted in the order they were written.
        with self._noting:
            with self._part(batch, "error" if failed else "output").open("ab") as out:
                out.write(data)
            self._batches.done(batch, item, failed=failed, wrote=len(data))

    def _part(self, batch: Batch, kind: str) -> Path:
        """The file being written. What an earlier process wrote and did not count is cut off first."""
        if batch.id not in self._trimmed:
            fresh = self._batches.find(batch.id)
            assert fresh is not None
            for name, length in (("output", fresh.output_bytes), ("error", fresh.error_bytes)):
                part = self._files.folder / f"{batch.id}.{name}.part"
                part.touch(mode=0o600)
                with part.open("r+b") as out:
                    out.truncate(length)
            self._trimmed.add(batch.id)
        return self._files.folder / f"{batch.id}.{kind}.part"

    def _end(self, batch: Batch, status: str, left: list[Item]) -> None:
        """Write the rest off, make the parts files, and say that the batch has ended."""
        words = {
            "expired": "the batch's completion window ended before this request was answered",
            "cancelled": "the batch was cancelled before this request was answered",
        }
        for item in left:
            request_id = f"batch_req_{secrets.token_hex(12)}"
            self._note(batch, item, _failed(item, request_id, f"batch_{status}", words[status]), failed=True)
        made: dict[str, str] = {}
        parts = [self._part(batch, kind) for kind in ("output", "error")]
        for kind, part in zip(("output", "error"), parts, strict=True):
            if part.stat().st_size:
                identity = f"file-{batch.id.removeprefix('batch_')}-{kind}"
                name = f"{batch.id}_{kind}.jsonl"
                made[f"{kind}_file"] = self._files.adopt(batch.owner, identity, name, part).id
        self._batches.change(batch, status=status, ended_s=self._clock(), **made)
        for part in parts:
            part.unlink()
        self._trimmed.discard(batch.id)
        self._held_until_s.pop(batch.id, None)
        _log.info("batch ended: %s", status, extra={"batch_id": batch.id, "outcome": status})


async def _whole(function: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """What a function returns, from a thread. Who is cancelled meanwhile leaves when it has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **more))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


def _line(path: Path, item: Item) -> Any:
    with path.open("rb") as lines:
        lines.seek(item.place)
        return json.loads(lines.read(item.length))["body"]


def _pace(slices: list[Slice]) -> float | None:
    """Units of work a second in the last whiles that a batch ran; None before it ever did."""
    last = slices[-10:]
    seconds = sum(part.end_s - part.start_s for part in last)
    return sum(part.units for part in last) / seconds if seconds > 0 else None


def _energy(body: dict[str, Any]) -> Energy:
    try:
        return Energy.from_json(body["usage"]["energy"])
    except (KeyError, TypeError, ValueError):
        return Energy.missing("the answer carries no receipt")


def _answered(item: Item, request_id: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": body.get("id") or request_id, "body": body}
    return {"id": request_id, "custom_id": item.custom_id, "response": response, "error": None}


def _failed(item: Item, request_id: str, code: str, message: str) -> dict[str, Any]:
    error = {"code": code, "message": message}
    return {"id": request_id, "custom_id": item.custom_id, "response": None, "error": error}
