"""`Service`: what a listener listens for: a server in this process, or replicas of it elsewhere."""

from __future__ import annotations

from typing import Protocol

from starlette.middleware import Middleware
from starlette.types import ASGIApp

from negawatt.serve.app import application
from negawatt.serve.config import ServerConfig
from negawatt.serve.gate import KeyGate
from negawatt.serve.limits import LimitsMiddleware
from negawatt.serve.operation import Operation
from negawatt.serve.server import Server


class Service(Protocol):
    """Goes through `start`, `open`, perhaps `leave`, perhaps `drain`, `stop` and `close`; all but the first
    and the last are harmless when they come twice or too early."""

    @property
    def app(self) -> ASGIApp:
        """What answers, once it is started."""

    async def start(self, place: str) -> None:
        """Load all there is to load; may be cancelled.

        Args:
            place: that is listened at, ``HOST:PORT``.

        Raises:
            NegawattError: something cannot be loaded.
        """

    async def open(self) -> None:
        """Requests are about to come."""

    async def leave(self) -> None:
        """Another process takes new requests: begin nothing that no client waits for."""

    async def drain(self, most_s: float) -> None:
        """Refuse what is new, and wait until what is under way has ended, but not longer than `most_s`."""

    async def stop(self) -> None:
        """End all there is."""

    def close(self) -> None:
        """Write the last of it down, outside of the event loop."""


class Alone:
    """A server in this process.

    Args:
        server: not started yet.
        config: it was made from.
    """

    def __init__(self, server: Server, config: ServerConfig) -> None:
        self._server, self._operation = server, Operation(server, config)
        self.app = self._operation.around(
            application(server, self._operation.routes, [Middleware(LimitsMiddleware)])
        )

    async def start(self, place: str) -> None:
        await self._server.start()

    async def open(self) -> None:
        await self._operation.start()

    async def leave(self) -> None:
        await self._operation.stop()

    async def drain(self, most_s: float) -> None:
        self._server.draining = True  # first of all: leaving the batches may wait for the database
        await self._operation.stop()
        await self._server.drain(most_s)

    async def stop(self) -> None:
        try:
            await self._operation.stop()
        finally:
            await self._server.stop()

    def close(self) -> None:
        if isinstance(self._server.gate, KeyGate):
            self._server.gate.close()
