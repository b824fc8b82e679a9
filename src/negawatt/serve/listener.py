"""Listening for requests: starting, draining, handing over, and ending in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from negawatt.errors import NegawattError, UsageError, require
from negawatt.serve.config import ServerConfig
from negawatt.serve.connection import Connection
from negawatt.serve.handover import Handover, Predecessor, tell_supervisor
from negawatt.serve.launch import server_of
from negawatt.serve.log import begin_process
from negawatt.serve.replicas import Replicas
from negawatt.serve.server import while_busy
from negawatt.serve.service import Alone, Service

_log = logging.getLogger("negawatt.serve")

KEEP_ALIVE_S = 15.0
"""So long a connection may rest between two requests. Clients give theirs up after 5 s as a rule, before the
server does: a request may come just when it closes."""


class _Listener(uvicorn.Server):
    """uvicorn that drains before it ends: what is new is refused with 503, what is under way goes on.

    With a successor it leaves instead: it takes no new connections, answers what comes over those it has and
    asks the client to connect anew, and ends when the last one is closed.
    """

    def __init__(self, service: Service, config: ServerConfig) -> None:
        self._service, self._drain_s = service, config.drain_s
        self._draining: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self.loading: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                self._farewell, host=config.host, port=config.port, http=Connection, interface="asgi3",
                lifespan="off", log_config=None, access_log=False,
                ssl_certfile=config.certificate, ssl_keyfile=config.private_key, ws="none",
                server_header=False, proxy_headers=config.behind_proxy, timeout_graceful_shutdown=5,
                timeout_keep_alive=int(KEEP_ALIVE_S),
            )
        )  # fmt: skip

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are ours, from before the models are loaded

    def told_to_end(self) -> None:
        """Drain, then end; told twice: end at once."""
        if self._draining is not None or not self.started:
            self.should_exit = self.force_exit = True
            if self.loading is not None:
                self.loading.cancel()
        else:
            if self._leaving is not None:
                self._leaving.cancel()
            self._draining = asyncio.get_running_loop().create_task(self._exit_after(self._drain()))

    def leave(self) -> None:
        """A successor accepts connections now: finish what there is, and end."""
        if self._leaving is None and self._draining is None:
            self._leaving = asyncio.get_running_loop().create_task(self._exit_after(self._leave()))

    async def _exit_after(self, farewell: Coroutine[None, None, None]) -> None:
        try:
            await farewell
        except Exception:  # noqa: BLE001  whatever it is: a server that was told to end does
            _log.exception("the server ends, and not all was left in order")
        self.should_exit = True

    async def _leave(self) -> None:
        _log.info("leaving: a successor takes new connections")
        tell_supervisor("STOPPING=1")
        for listening in self.servers:
            listening.close()
        await self._service.leave()
        await while_busy(lambda: self.server_state.connections, self._drain_s)

    async def _farewell(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, whose answers end their connection while this server leaves."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and self._leaving is not None:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        await self._service.app(scope, receive, told if scope["type"] == "http" else send)

    async def _drain(self) -> None:
        _log.info("draining: new requests are refused")
        await self._service.drain(self._drain_s)


async def serve(service: Service, config: ServerConfig, started: Callable[[str], None]) -> None:
    """Serve until told to end by SIGTERM or Ctrl-C; a second one ends at once.

    Args:
        service: not started yet.
        config: where to listen, and how to end.
        started: called with the address once requests are answered.

    Raises:
        NegawattError: a model cannot be loaded, or the address cannot be listened on.
    """
    path = None if config.handover is None else Path(config.handover)
    before = None if path is None else await asyncio.to_thread(Predecessor.at, path)
    place = _bound(config) if before is None else _taken(before, config)
    listener = _Listener(service, config)
    loop = asyncio.get_running_loop()
    handover: Handover | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, listener.told_to_end)
    try:
        listener.loading = loop.create_task(service.start("{}:{}".format(*place.getsockname())))
        with suppress(asyncio.CancelledError):
            await listener.loading
        if listener.should_exit:  # told to end before there was anything to drain
            return
        await service.open()
        serving = loop.create_task(listener.serve(sockets=[place]))
        while not listener.started and not serving.done():
            await asyncio.sleep(0.01)
        if listener.started:
            if before is not None:
                await asyncio.to_thread(before.relieve)
            if path is not None:
                handover = Handover(path, place, lambda: loop.call_soon_threadsafe(listener.leave))
            tell_supervisor("READY=1")
            host, port = place.getsockname()[:2]
            scheme = "http" if config.certificate is None else "https"
            started(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        await serving
    finally:
        if handover is not None:
            handover.close()
        if before is not None:
            before.close()
        place.close()
        await service.stop()


def run(config: ServerConfig, started: Callable[[str], None]) -> None:
    """As `serve`, in an event loop of its own.

    Raises:
        UsageError: the configuration does not hold.
        NegawattError: a model cannot be loaded, or the address cannot be listened on.
    """
    begin_process()
    server = server_of(config)
    service = Alone(server, config) if config.ray is None else Replicas(server, config)
    uvloop = require("uvloop", extra="serve")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(service, config, started))
    finally:
        service.close()


def _taken(before: Predecessor, config: ServerConfig) -> socket.socket:
    """The predecessor's socket, if it is at the address that is asked for."""
    host, port = before.place.getsockname()[:2]
    if host != config.host or config.port not in (0, port):
        before.close()
        raise UsageError(
            f"the server that waits at {config.handover} listens on {host}:{port}, and not on "
            f"{config.host}:{config.port}; give this one a --handover of its own"
        )
    return before.place


def _bound(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((config.host, config.port))
    except OSError as exc:
        place.close()
        raise NegawattError(
            f"cannot listen on {config.host}:{config.port}: {exc.strerror or exc}; choose another --port"
        ) from exc
    return place
