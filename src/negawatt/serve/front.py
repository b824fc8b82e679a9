"""`Front`: the ASGI application that hands requests to replicas and their answers back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from negawatt.errors import require
from negawatt.serve.admission import Refused, shutting_down
from negawatt.serve.app import error_of, error_response, until_gone

TAKEN_WITHIN_S = 30.0
"""So long a request waits for a replica to take it, where the last one has just died and another starts."""
TRIES = 3
"""Replicas that a request is handed to while it was begun by none."""
_TOLD = ("method", "path", "root_path", "http_version", "scheme")
_TOLD_BYTES = ("raw_path", "query_string")

_log = logging.getLogger("negawatt.serve")


class _Lost(Exception):
    """The replica has died, or no answer comes from it any more."""


class Front:
    """Stands inside of the check for a key and of the limits: a body comes in one piece.

    A request that no replica has begun when its replica dies goes to another. One that was begun is not
    asked twice: the client gets an error in OpenAI's form, in a stream as its last event.

    Args:
        handle: Ray Serve's, of the replicas.

    Attributes:
        busy: requests under way.
        draining: once true, new requests are refused and those under way go on.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._asked = handle.options(method_name="answer", stream=True)
        self._exceptions = require("ray.exceptions", extra="replicas")
        self._trouble = require("ray.serve.exceptions", extra="replicas")
        self.busy, self.draining = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            await JSONResponse({"status": "ok"})(scope, receive, send)
            return
        if self.draining:
            await error_response(shutting_down())(scope, receive, send)
            return
        self.busy += 1
        try:
            body = (await receive()).get("body", b"")
            if scope["path"] == "/metrics":
                await self._metrics(scope, receive, send)
            else:
                await _Forwarded(send).run(self, scope, body, receive)
        finally:
            self.busy -= 1

    async def answers(self, scope: Scope, body: bytes) -> Any:
        """The messages of a replica that has taken a request, in lists; of the first of `TRIES` that does.

        Raises:
            Refused: too many wait, or none takes it in time.
            _Lost: all that were tried have died.
        """
        for left in reversed(range(TRIES)):
            coming = self._asked.remote(plain(scope), body)
            try:
                async with asyncio.timeout(TAKEN_WITHIN_S):
                    await anext(coming)
                return coming
            except TimeoutError:
                coming.cancel()
                raise _unavailable("no replica took the request in time") from None
            except asyncio.CancelledError:
                coming.cancel()
                raise
            except self._trouble.BackPressureError:
                raise _unavailable("too many requests wait for a replica") from None
            except (self._trouble.RayServeException, self._exceptions.RayError) as exc:
                _log.warning("a replica did not take a request: %s", type(exc).__name__)
                if not left:
                    raise _Lost from exc
        raise AssertionError("unreachable")

    async def further(self, coming: Any) -> list[Message]:
        """The next messages; none at the end.

        Raises:
            _Lost: the replica has died.
        """
        try:
            found: list[Message] = await anext(coming)
            return found
        except StopAsyncIteration:
            return []
        except (self._trouble.RayServeException, self._exceptions.RayError) as exc:
            _log.warning("a replica was lost at a request: %s", type(exc).__name__)
            raise _Lost from exc

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What every replica tells Prometheus, in one page, with the replica's name as a label."""
        told = self._handle.broadcast("scrape", plain(scope))
        try:
            found = await told.results_async(timeout_s=TAKEN_WITHIN_S, return_exceptions=True)
        except TimeoutError:
            found = []
        pages: dict[str, str] = {}
        for each in found:
            if isinstance(each, BaseException):
                continue  # it is being ended, or has died: what it counted is gone with it
            name, messages = each
            if messages[0]["status"] != 200:
                for message in messages:
                    await send(message)
                return
            pages[name] = b"".join(m.get("body", b"") for m in messages[1:]).decode()
        page = "\n".join(merged(pages)) + "\n"
        await Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")(scope, receive, send)


class _Forwarded:
    """One request on its way."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = self._streams = False

    async def run(self, front: Front, scope: Scope, body: bytes, receive: Receive) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        work = asyncio.ensure_future(self._pass_on(front, scope, body))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # the client has left
                work.cancel()
            await asyncio.gather(work, return_exceptions=gone.done())
        except _Lost:
            await self._apologize(scope, receive)
        except Refused as exc:
            await error_response(exc)(scope, receive, self._send)
        finally:
            gone.cancel()
            work.cancel()

    async def _pass_on(self, front: Front, scope: Scope, body: bytes) -> None:
        coming = await front.answers(scope, body)
        ended = False
        try:
            while messages := await front.further(coming):
                for message in messages:
                    self._note(message)
                    await self._send(message)
            ended = True
        finally:
            if not ended:
                coming.cancel()  # its slot is wanted by others

    def _note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")

    async def _apologize(self, scope: Scope, receive: Receive) -> None:
        """Tell the client that its replica is gone, in the form that it waits for.

        Raises:
            ConnectionError: half of an answer of known length was sent; the connection has to break.
        """
        lost = _unavailable("the replica that was to answer has died; ask again")
        if not self._started:
            await error_response(lost)(scope, receive, self._send)
        elif self._streams:
            event = json.dumps({"error": error_of(lost)}, separators=(",", ":")).encode()
            body = b"data: " + event + b"\n\n"
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        else:
            raise ConnectionError("a replica died within an answer")


def plain(scope: Scope) -> dict[str, Any]:
    """What of a request's scope goes to another process."""
    told: dict[str, Any] = {name: str(scope.get(name, "")) for name in _TOLD}
    told |= {name: bytes(scope.get(name) or b"") for name in _TOLD_BYTES}
    for end in ("client", "server"):
        told[end] = None if scope.get(end) is None else tuple(scope[end])
    return {**told, "headers": [(bytes(name), bytes(value)) for name, value in scope["headers"]]}


def merged(pages: dict[str, str]) -> Iterator[str]:
    """The lines of pages in Prometheus' text format as one, by the name of whom they came from.

    Every sample gets a label ``replica``; ``negawatt_replicas`` counts the pages.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, page in pages.items():
        family = ""
        for line in filter(None, page.splitlines()):
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if line not in known:
                    known.append(line)
            else:
                samples.setdefault(family, []).append(_labelled(line, replica))
    yield "# HELP negawatt_replicas Replicas that answer."
    yield "# TYPE negawatt_replicas gauge"
    yield f"negawatt_replicas {len(pages)}"
    for family, head in heads.items():
        yield from head
        yield from samples.get(family, ())


def _labelled(sample: str, replica: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{replica="{replica}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{replica="{replica}"}} {value}'


def _unavailable(why: str) -> Refused:
    return Refused(why, status=503, kind="server_error", code="replica_unavailable", retry_after_s=1)
