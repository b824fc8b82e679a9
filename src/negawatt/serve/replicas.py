"""`Replicas`: as many servers on a Ray cluster as their load is worth, behind one address.

Ray Serve places them, watches over them, hands each request to one of two by how much they have, and ends
them when they have nothing left to do. Requests travel between this process and theirs over Ray's own
connections: a Ray cluster is a trusted network.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.types import ASGIApp

from negawatt.cluster_address import refuse_silent
from negawatt.database import default_url
from negawatt.errors import NegawattError, UsageError, require
from negawatt.serve.app import Guard
from negawatt.serve.config import ServerConfig
from negawatt.serve.front import Front
from negawatt.serve.gate import KeyGate
from negawatt.serve.limits import LimitsMiddleware
from negawatt.serve.replica import Origin, Replica
from negawatt.serve.scaling import ScalingPolicy
from negawatt.serve.server import Server, while_busy

STARTED_WITHIN_S = 600.0
"""For the cluster to find room for the least number of replicas, and for these to load their models."""
HEALTH_S = 5.0
"""So often Ray asks a replica how it is."""

_log = logging.getLogger("negawatt.serve")


class Replicas:
    """A `negawatt.serve.service.Service`.

    Args:
        server: of the configuration, whose models are not loaded here: by its gate callers are known.
        config: of every replica.

    Raises:
        UsageError: the address is none, or the cluster's machines cannot share the database.
        NegawattError: nothing answers there.
        MissingDependency: Ray Serve is not installed.
    """

    app: ASGIApp

    def __init__(self, server: Server, config: ServerConfig) -> None:
        assert config.ray is not None
        if config.ray.startswith("ray://"):
            raise UsageError("the server has to run on a machine of the cluster: give auto or HOST:PORT")
        self._server, self._config, self._name = server, config, ""
        self._front: Front | None = None
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # the log there is ours: JSON, a line each
        require("grpc_reflection", extra="replicas")  # without it there is Ray, but not Ray Serve
        self._serve = require("ray.serve", extra="replicas")
        self._settings = require("ray.serve.config", extra="replicas")
        self._ray = require("ray", extra="replicas")
        refuse_silent(config.ray)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with self._translated():
            self._ray.init(
                address=config.ray, namespace="negawatt", log_to_driver=False, logging_level=logging.ERROR,
                configure_logging=False,
            )  # fmt: skip
            self._nodes = [node for node in self._ray.nodes() if node["Alive"]]
        assert isinstance(server.gate, KeyGate)
        self._shares = server.gate.account.database.is_postgres
        others = {node["NodeManagerHostname"] for node in self._nodes} - {socket.gethostname()}
        if others and not self._shares:
            raise UsageError(
                f"the cluster has other machines ({', '.join(sorted(others)[:3])}), and the keys, budgets "
                "and receipts are in an SQLite file, which they cannot share; give --database postgresql://…"
            )

    async def start(self, place: str) -> None:
        # Without dots, at which Ray cuts the titles that it gives to the replicas' processes.
        self._name = re.sub(r"[^0-9A-Za-z]+", "-", f"negawatt-{socket.gethostname()}-{place}")
        try:
            with self._translated():
                await self._deployed()
                await self._running()
        except BaseException:
            with suppress(NegawattError):  # what went wrong first is what is told
                await self.stop()
            raise
        self._front = Front(self._serve.get_app_handle(self._name))
        self.app = Guard(LimitsMiddleware(self._front), self._server)

    async def open(self) -> None:
        return

    async def leave(self) -> None:
        return

    async def drain(self, most_s: float) -> None:
        if self._front is None:
            return
        self._front.draining = True
        front = self._front
        await while_busy(lambda: front.busy, most_s)

    async def stop(self) -> None:
        if self._name:
            name, self._name = self._name, ""
            with self._translated():
                await asyncio.to_thread(self._serve.delete, name)
        await self._server.stop()

    def close(self) -> None:
        gate = self._server.gate
        assert isinstance(gate, KeyGate)
        gate.close()
        self._ray.shutdown()

    async def _deployed(self) -> None:
        """Deploy; who is told to end meanwhile waits until there is something that can be ended."""
        deploying = asyncio.ensure_future(asyncio.to_thread(self._deploy))
        try:
            await asyncio.shield(deploying)
        except asyncio.CancelledError:
            await asyncio.gather(deploying, return_exceptions=True)
            raise

    def _deploy(self) -> None:
        config, (least, most) = self._config, self._config.replica_bounds
        scaling = {"wait_s": config.scale_wait_s, "waiting_w": config.waiting_w, "least": least, "most": most}
        mean_s = max(1.0, min(30.0, config.scale_down_s))
        with warnings.catch_warnings():  # that another interval than the usual one is chosen
            warnings.simplefilter("ignore")
            autoscaling = self._settings.AutoscalingConfig(
                min_replicas=least, initial_replicas=least, max_replicas=most,
                upscale_delay_s=config.scale_up_s, downscale_delay_s=config.scale_down_s,
                look_back_period_s=mean_s, metrics_interval_s=mean_s / 3,
                policy=self._settings.AutoscalingPolicy(
                    policy_function=ScalingPolicy, policy_kwargs={"idle_w": config.replica_w, **scaling}
                ),
            )  # fmt: skip
        options = [model.options for model in self._server.models.values()]
        at_once = sum(each.settings.batch + each.queue_limit for each in options) + 64
        deployment = self._serve.deployment(
            Replica, name="server", ray_actor_options={"num_cpus": self._processors()},
            max_ongoing_requests=at_once, max_queued_requests=at_once, autoscaling_config=autoscaling,
            graceful_shutdown_timeout_s=config.drain_s, graceful_shutdown_wait_loop_s=0.2,
            health_check_period_s=HEALTH_S, health_check_timeout_s=30.0,
        )  # fmt: skip
        # A replica's own listener is none, and the database is found wherever its home may be.
        own = dataclasses.replace(
            config, ray=None, replicas="1", handover=None, database=config.database or default_url()
        )
        origin = Origin.of(config, shares_database=self._shares)
        self._serve.start(proxy_location="Disabled")
        self._serve.run_many(
            [self._serve.RunTarget(deployment.bind(own, origin), name=self._name, route_prefix=None)],
            wait_for_ingress_deployment_creation=True, wait_for_applications_running=False,
        )  # fmt: skip

    def _processors(self) -> float:
        """That one replica takes: as many as its models' threads; without a number, a whole machine."""
        threads = [model.options.settings.threads for model in self._server.models.values()]
        whole = min((node["Resources"].get("CPU", 0.0) or math.inf for node in self._nodes), default=1.0)
        return max(float(each) if each is not None else whole for each in threads)

    async def _running(self) -> None:
        """
        Raises:
            NegawattError: the least number of replicas does not come to run.
        """
        end_s = time.monotonic() + STARTED_WITHIN_S
        while time.monotonic() < end_s:
            status = await asyncio.to_thread(self._serve.status)
            app = status.applications.get(self._name)
            if app is not None and app.status == "RUNNING":
                return
            if app is not None and app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                said = [app.message, *(each.message for each in app.deployments.values())]
                raise NegawattError(f"no replica can be run: {_reason(said)}")
            await asyncio.sleep(0.1)
        raise NegawattError(
            f"the cluster found no room for {self._config.replica_bounds[0]} replicas of "
            f"{self._processors():g} processors each within {STARTED_WITHIN_S:g} s"
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        exceptions = require("ray.exceptions", extra="replicas")
        trouble = require("ray.serve.exceptions", extra="replicas")
        try:
            yield
        except (exceptions.RayError, trouble.RayServeException, ConnectionError, RuntimeError) as exc:
            raise NegawattError(
                f"the Ray cluster at {self._config.ray} fails: {_reason([str(exc)])}"
            ) from exc


def _reason(texts: list[str]) -> str:
    """The last line of a text that tells of an error of ours, else the first line of all."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("negawatt.errors.") or "Error: " in line]
    chosen = ours[-1].partition(": ")[2] if ours else (lines or ["it does not say why"])[0]
    return chosen.rstrip(".")
