"""`Replica`: a server without a listener of its own; Ray Serve keeps as many as are wanted.

Ray hands its methods what `negawatt.serve.front.Front` was asked. In a process of its own on any machine of
the cluster it holds the same application as a server alone: keys, limits, budgets, receipts, batches.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import Message

from negawatt.errors import NegawattError, require
from negawatt.serve.config import ServerConfig
from negawatt.serve.keys import server_secret
from negawatt.serve.launch import server_of
from negawatt.serve.log import begin_process
from negawatt.serve.model import IDLE_RECEIPT_S
from negawatt.serve.replica_load import ReplicaLoad
from negawatt.serve.service import Alone
from negawatt.serve.task import come

_log = logging.getLogger("negawatt.serve")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a replica comes from, so that it is not another server by mistake.

    Attributes:
        folder: that names of files are relative to.
        machine: see `machine_id`.
        shares_database: whether machines other than this one can use the database.
        seal: of the server's secret, which it does not tell.
    """

    folder: str
    machine: str
    shares_database: bool
    seal: str

    @classmethod
    def of(cls, config: ServerConfig, *, shares_database: bool) -> Origin:
        """This process, as the origin of replicas of a configuration."""
        return cls(str(Path.cwd()), machine_id(), shares_database, _seal(config))

    def check(self, config: ServerConfig) -> None:
        """
        Raises:
            NegawattError: what keeps keys, budgets and receipts is not the same here.
        """
        here = socket.gethostname()
        if not self.shares_database and machine_id() != self.machine:
            raise NegawattError(
                f"{here} is another machine, and an SQLite file cannot be shared with it; "
                "give --database postgresql://…"
            )
        if not hmac.compare_digest(_seal(config), self.seal):
            raise NegawattError(
                f"the server's secret on {here} is another one, so its keys and receipts would be too; "
                "give all machines a copy of one --secret-file"
            )


class Replica:
    """What Ray Serve makes, asks and ends; the names of the methods without arguments are Ray's.

    Args:
        config: of the server; what is about listening is not used.
        origin: who wants it.

    Raises:
        NegawattError: it cannot serve here.
    """

    async def __init__(self, config: ServerConfig, origin: Origin) -> None:  # type: ignore[misc]  # Ray awaits it
        begin_process()
        with suppress(OSError):  # elsewhere it may be missing; names of files then have to be whole
            os.chdir(origin.folder)
        origin.check(config)
        self._server = server_of(config)
        self._service = Alone(self._server, config)
        self._under_way: set[asyncio.Future[None]] = set()
        self._name = str(require("ray.serve", extra="replicas").get_replica_context().replica_id.unique_id)
        try:
            await self._service.start(self._name)
        except BaseException:
            await self.__del__()
            raise
        self._load = ReplicaLoad(self._server.models.values(), min(IDLE_RECEIPT_S, config.scale_down_s))
        await self._service.open()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
        """Ask the application; its messages as they come, several at once where they have. The first list is
        empty and says that the request is here. Where nobody wants the rest, the application is told so."""
        yield []
        exchange = Exchange(body)
        named = (b"x-negawatt-replica", self._name.encode())
        running = asyncio.ensure_future(exchange.run(self._service.app, scope))
        self._under_way.add(running)
        running.add_done_callback(self._under_way.discard)
        try:
            while messages := await exchange.answered():
                for message in messages:
                    if message["type"] == "http.response.start":
                        message["headers"] = [*message.get("headers", ()), named]
                yield messages
        finally:
            exchange.leave()

    async def scrape(self, scope: dict[str, Any]) -> tuple[str, list[Message]]:
        """The replica's name, and all it answers to a request without a body, such as that of a scraper."""
        exchange = Exchange(b"")
        await exchange.run(self._service.app, scope)
        return self._name, await exchange.answered()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return self._load.figures()

    async def check_health(self) -> None:
        for model in self._server.models.values():
            if model.state == "failed" or model.stalled:
                raise NegawattError(f"{model.name} cannot be run: {model.failure or 'it does not step'}")

    async def __del__(self) -> None:
        """Ray ends it when nothing is under way: batches are left to others, receipts are written."""
        await self._service.drain(1.0)
        await self._service.stop()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await asyncio.to_thread(self._service.close)


class Exchange:
    """One request to an ASGI application in this process, whose body is known and whose client may leave.

    Args:
        body: of the request.
    """

    def __init__(self, body: bytes) -> None:
        self._request: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._answer: asyncio.Queue[Message | None] = asyncio.Queue()
        self._left = asyncio.Event()

    async def run(self, app: Any, scope: dict[str, Any]) -> None:
        """Until the application has ended."""
        try:
            await app({**scope, "type": "http", "asgi": {"version": "3.0"}}, self._receive, self._send)
        except Exception:  # noqa: BLE001  it has answered with an error before; the rest is for the log
            _log.exception("a request failed")
        finally:
            self._answer.put_nowait(None)

    async def answered(self) -> list[Message]:
        """What it has answered since, at least one message; none at the end."""
        return await come(self._answer)

    def leave(self) -> None:
        """The client does not want the rest."""
        self._left.set()

    async def _receive(self) -> Message:
        if self._request is not None:
            message, self._request = self._request, None
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if not self._left.is_set():
            self._answer.put_nowait(message)


def machine_id() -> str:
    """By which processes know whether they share a machine, and so its files' locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return socket.gethostname()


def _seal(config: ServerConfig) -> str:
    secret = server_secret(None if config.secret_file is None else Path(config.secret_file))
    return hmac.new(secret, b"replica", hashlib.sha256).hexdigest()
