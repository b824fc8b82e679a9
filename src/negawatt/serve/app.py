"""The HTTP routes of a `Server`: OpenAI's, and those that tell whether it is well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from negawatt.errors import NegawattError
from negawatt.serve import openapi
from negawatt.serve.admission import Caller, Refused
from negawatt.serve.answer import Chunks
from negawatt.serve.ask import Ask
from negawatt.serve.model import ServedModel
from negawatt.serve.receipt import sum_of
from negawatt.serve.server import Server, failure_of, parse_json, too_late
from negawatt.serve.task import Task

PUBLIC = frozenset({"/health", "/ready"})
"""The only paths that need no key."""
MOST_BODY_BYTES = 8 * 2**20


def application(
    server: Server, routes: Sequence[BaseRoute] = (), middleware: Sequence[Middleware] = ()
) -> Starlette:
    """The ASGI application.

    Args:
        server: what answers; it is started and stopped with the application.
        routes: more routes; like all others they need a key.
        middleware: more, inside of the check for a key.
    """

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    async def complete(request: Request) -> Response | EventStream:
        ask = server.parse(request.url.path, parse_json(await body_of(request)))
        model, task = await server.begin(request.state.caller, ask, lambda: until_gone(request.receive))
        if isinstance(ask, Ask) and ask.stream:
            return EventStream(model, task, Chunks(ask, task))
        await server.finish(model, task, lambda: until_gone(request.receive))
        return JSONResponse(server.told(model, ask, task), headers=headers_of(task))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_named(server, name) for name in server.names]})

    async def model(request: Request) -> Response:
        return JSONResponse(_named(server, request.path_params["name"]))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        trouble = server.trouble
        said = {"status": "ok" if trouble is None else "unavailable", "reason": trouble}
        return JSONResponse(said, status_code=200 if trouble is None else 503)

    async def description(request: Request) -> Response:
        return JSONResponse(openapi.document())

    own = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/embeddings", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/openapi.json", description),
        Route("/health", health),
        Route("/ready", ready),
    ]
    return Starlette(
        routes=[*own, *routes],
        lifespan=life,
        middleware=[Middleware(Guard, server=server), *middleware],
        exception_handlers={NegawattError: _refuse, HTTPException: _refuse_http, Exception: _refuse_fault},
    )


class Guard:
    """Lets only known callers past, on every path but those in `PUBLIC`."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] not in PUBLIC:
                authorization = dict(scope["headers"]).get(b"authorization")
                text = None if authorization is None else authorization.decode("latin-1")
                try:
                    caller: Caller = await self._server.desk.caller(text)
                except Refused as exc:
                    await error_response(exc)(scope, receive, send)
                    return
                scope.setdefault("state", {})["caller"] = caller
        elif scope["type"] != "lifespan":
            return
        await self._app(scope, receive, send)


class EventStream:
    """A streamed answer, as server-sent events; a client that leaves aborts it."""

    def __init__(self, model: ServedModel, task: Task, chunks: Chunks) -> None:
        self._model, self._task, self._chunks = model, task, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, task = self._model, self._task
        gone = asyncio.ensure_future(until_gone(receive))
        gone.add_done_callback(lambda _: model.abort(task))
        deadline_s = model.options.deadline_s
        timer = asyncio.get_running_loop().call_later(
            deadline_s, model.abort, task, "aborted", too_late(deadline_s)
        )
        try:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-request-id", task.id.encode()),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send(send, list(self._chunks.first()))
            while deltas := await task.next_deltas():
                await self._send(send, [chunk for delta in deltas for chunk in self._chunks.of(delta)])
            if (failure := failure_of(task)) is not None:
                await self._send(send, [{"error": error_of(failure)}])
            else:
                await self._send(send, list(self._chunks.last()))
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            timer.cancel()
            gone.cancel()
            model.abort(task)

    async def _send(self, send: Send, events: list[dict[str, Any]]) -> None:
        if events:
            body = b"".join(b"data: " + _json(event) + b"\n\n" for event in events)
            await send({"type": "http.response.body", "body": body, "more_body": True})


async def until_gone(receive: Receive) -> None:
    """Returns when the client has left; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def body_of(request: Request, most_bytes: int = MOST_BODY_BYTES) -> bytes:
    """The body.

    Raises:
        Refused: it is too long (413).
    """
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most_bytes:
            raise Refused(f"the body is longer than {most_bytes >> 20} MiB", status=413)
        parts.append(part)
    return b"".join(parts)


def headers_of(task: Task) -> dict[str, str]:
    """The receipt's figures as headers."""
    receipt = task.receipt
    assert receipt is not None
    energy = sum_of((receipt, *task.attempts))
    told = {"x-request-id": task.id, "x-negawatt-boundary": receipt.boundary}
    told["x-negawatt-provenance"] = str(energy.provenance)
    told["x-negawatt-cpu-s"] = f"{sum(each.cpu_s for each in (receipt, *task.attempts)):.6f}"
    if energy.value_j is not None:
        told["x-negawatt-energy-j"] = f"{energy.value_j:.6g}"
    grams = [None if each.carbon is None else each.carbon.value for each in (receipt, *task.attempts)]
    if None not in grams:
        told["x-negawatt-carbon-g"] = f"{sum(filter(None, grams)):.6g}"
    return told


def error_of(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"message": str(refused), "type": refused.kind, "param": refused.param, "code": refused.code}


def error_response(refused: Refused) -> Response:
    """The response that refuses a request."""
    headers = {}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(refused.retry_after_s)))
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": error_of(refused)}, status_code=refused.status, headers=headers)


async def _refuse(request: Request, exc: Exception) -> Response:
    if isinstance(exc, Refused):
        return error_response(exc)
    return error_response(Refused(str(exc), status=500, kind="server_error"))


async def _refuse_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    said = {404: f"there is no {request.url.path[:100]}", 405: f"{request.method} is not for this path"}
    response = error_response(Refused(said.get(exc.status_code, exc.detail), status=exc.status_code))
    response.headers.update(exc.headers or {})
    return response


async def _refuse_fault(request: Request, exc: Exception) -> Response:
    return error_response(Refused("the server failed; its log tells more", status=500, kind="server_error"))


def _named(server: Server, name: str) -> dict[str, Any]:
    """What is served by a name, in OpenAI's form.

    Raises:
        Refused: nothing is (404).
    """
    head = {"id": name, "object": "model", "owned_by": "negawatt"}
    if (cascade := server.cascades.get(name)) is not None:
        created = server.models[cascade.large].created_s
        return {**head, "created": created, "cascade": cascade.to_json()}
    if (eco := server.ecos.get(name)) is not None:
        return {**head, "created": server.models[eco.model].created_s, "eco": eco.to_json()}
    return _model(server.model(name))


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "negawatt",
        "max_model_len": model.most_tokens,
        "embeds": model.pooling is not None,
        "state": model.state,
    }


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
