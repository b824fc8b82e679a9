"""`Operation`: what a server has beside its models and its gate: batches, metrics and traces."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from starlette.routing import Route
from starlette.types import ASGIApp

from negawatt.database import Database, default_url
from negawatt.errors import MissingDependency
from negawatt.home import home
from negawatt.serve.admission import Caller
from negawatt.serve.batch_routes import BatchRoutes
from negawatt.serve.batches import Batches
from negawatt.serve.config import ServerConfig
from negawatt.serve.deferred import Deferred
from negawatt.serve.files import Files
from negawatt.serve.gate import KeyGate
from negawatt.serve.grid import Grid
from negawatt.serve.metrics import Metrics
from negawatt.serve.server import Server
from negawatt.serve.traces import Traces

_log = logging.getLogger("negawatt.serve")


class Operation:
    """Made before the server starts. `Server.models` has to be whole.

    Args:
        server: whose it is.
        config: where files and batches are kept, what the grid is known by, where spans are sent.

    Attributes:
        routes: to mount beside the server's own.

    Raises:
        NegawattError: the database or the folder cannot be opened.
        MissingDependency: traces are asked for and OpenTelemetry is not installed.
    """

    def __init__(self, server: Server, config: ServerConfig) -> None:
        gate, clock = server.gate, time.time
        keyed = gate if isinstance(gate, KeyGate) else None
        database = keyed.account.database if keyed else Database(config.database or default_url())
        folder = Path(config.files) if config.files else home() / "serve" / "files"
        files, batches = Files(database, folder, clock), Batches(database, clock)
        grid = Grid(config.footprint().intensity)
        self._runner = Deferred(
            batches, files, server.answer, grid, known=keyed.known if keyed else lambda key_id: Caller()
        )
        self._traces = Traces(config.traces) if config.traces else None
        self._metrics: Metrics | None = None
        try:
            self._metrics = Metrics(
                lambda: list(server.models.values()),
                lambda: keyed.account.uses() if keyed else [],
                batches.waiting,
                lambda caller: not config.needs_keys or caller.team == config.operators,
                lambda: keyed.clerk.waiting if keyed else 0,
            )
        except MissingDependency as exc:
            _log.info("no /metrics: %s", exc)
        for model in server.models.values():
            model.listeners += [watcher.receipt for watcher in (self._metrics, self._traces) if watcher]
        self.routes: list[Route] = BatchRoutes(files, batches, self._runner, grid, clock).routes
        if self._metrics is not None:
            self.routes.append(self._metrics.route)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, its answers counted."""
        return app if self._metrics is None else self._metrics.counted(app)

    async def start(self) -> None:
        """Go on with batches that an earlier process left."""
        await self._runner.start()

    async def stop(self) -> None:
        """Leave batches to whoever comes next, and send the last spans; once is enough."""
        await self._runner.stop()
        if self._traces is not None:
            self._traces.close()
            self._traces = None
