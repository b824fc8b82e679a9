"""`Limits`: how large, deep, long and slow a request may be, and the middleware that turns others away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from negawatt.serve.admission import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How a request may come. What its fields may hold, `negawatt.serve.ask` says.

    Attributes:
        body_bytes: of a request, but of an upload to ``/v1/files``.
        upload_bytes: of such an upload.
        header_count, header_bytes: number of headers, and all of them together.
        json_depth: objects and lists within each other.
        body_s: seconds in which the whole body has to have come.
        write_s: seconds in which a client has to take a piece of its answer.
    """

    body_bytes: int = 1 << 20
    upload_bytes: int = 64 << 20
    header_count: int = 64
    header_bytes: int = 16 << 10
    json_depth: int = 32
    body_s: float = 20.0
    write_s: float = 30.0


class LimitsMiddleware:
    """ASGI: requests beyond the limits get an error in OpenAI's form before the application sees them.

    The body is read here, to its end and in time; the application gets it in one piece. A client that does
    not take its answer in time counts as one that left: the application is told so and what it still sends
    is dropped.
    """

    def __init__(self, app: App, limits: Limits | None = None) -> None:
        self._app, self._limits = app, limits or Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            body = await self._body(scope, receive)
        except Refused as exc:
            await _answer(exc, send)
            return
        except _Left:
            return
        await _Exchange(body, receive, send, self._limits.write_s).run(self._app, scope)

    def _check_headers(self, scope: Scope) -> None:
        limits, headers = self._limits, scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > limits.header_count or size > limits.header_bytes:
            raise Refused(
                f"expected at most {limits.header_count} headers of {limits.header_bytes} bytes together",
                status=431,
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limits = self._limits
        is_upload = scope["path"].rstrip("/") == "/v1/files"
        most = limits.upload_bytes if is_upload else limits.body_bytes
        too_large = Refused(f"expected a body of at most {most} bytes", status=413)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        pieces, size = [], 0
        try:
            async with asyncio.timeout(limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Left
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > most:
                        raise too_large
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(f"the body did not come within {limits.body_s:g} s", status=408) from None
        body = b"".join(pieces)
        if not is_upload and (depth := json_depth(body)) > limits.json_depth:
            raise Refused(
                f"expected at most {limits.json_depth} objects and lists within each other, not {depth}",
                status=400,
            )
        return body


class _Left(Exception):
    """The client is gone."""


class _Exchange:
    """Hands the application its body, and its answer to the client as long as that takes it."""

    def __init__(self, body: bytes, receive: Receive, send: Send, write_s: float) -> None:
        self._first: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive, self._send, self._write_s = receive, send, write_s
        self._gave_up = asyncio.Event()

    async def run(self, app: App, scope: Scope) -> None:
        await app(scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self._first is not None:
            message, self._first = self._first, None
            return message
        waiting = asyncio.ensure_future(self._receive())
        giving_up = asyncio.ensure_future(self._gave_up.wait())
        try:
            await asyncio.wait({waiting, giving_up}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else {"type": "http.disconnect"}
        finally:
            waiting.cancel()
            giving_up.cancel()

    async def send(self, message: Message) -> None:
        if self._gave_up.is_set():
            return
        try:
            async with asyncio.timeout(self._write_s):
                await self._send(message)
        except TimeoutError:
            self._gave_up.set()


async def _answer(exc: Refused, send: Send) -> None:
    body = json.dumps(error_document(exc)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not waited for
    ]
    await send({"type": "http.response.start", "status": exc.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_document(exc: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": str(exc), "type": exc.kind, "param": exc.param, "code": exc.code}}


_MARKS = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'(?<!\\)(?:\\\\)*"')


def json_depth(text: bytes) -> int:
    """How deeply objects and lists are nested in a JSON text, without parsing it.

    Of what is no JSON some number; it is only asked for before the parser, to which depth is dangerous.
    """
    depth = deepest = position = 0
    while (mark := _MARKS.search(text, position)) is not None:
        position = mark.end()
        if mark[0] == b'"':
            end = _STRING_END.search(text, position)
            if end is None:
                break
            position = end.end()
        elif mark[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def read_json(body: bytes) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        Refused: it is no JSON object; NaN and infinities, which Python would take, are none either.
    """

    def no_number(text: str) -> float:
        raise ValueError(f"{text} is no JSON")

    try:
        found = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as exc:
        raise Refused("expected a body that is JSON", status=400, code="invalid_json") from exc
    if not isinstance(found, dict):
        raise Refused("expected a body that is one JSON object", status=400, code="invalid_json")
    return found
