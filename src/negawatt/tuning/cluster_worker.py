"""``python -m negawatt.tuning.cluster_worker ADDRESS``: a connection to a Ray cluster.

No other file of searches knows Ray.

A line of JSON on standard input is a request, and each is answered by one on standard output. In a process
of its own, Ray's threads disturb no measurement, and when Ray ends the process, as it does where the head of
a cluster stays away, the search lives on.

Texts go to nodes and come back, and pieces of model files go there. Ray carries them in its own form, which
is pickled, and trusts whoever reaches its ports: a Ray cluster is a trusted network.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from negawatt.cluster_address import refuse_silent
from negawatt.errors import NegawattError, require
from negawatt.tuning.parcel import Parcel, delivery_name

DELIVERED_WITHIN_S = 600.0
"""Seconds for a node to take a piece of a model."""


class Lost(NegawattError):
    """A node, or the process on it that had our errand, is gone."""


class Connection:
    """What requests are answered with; each ``do_NAME`` answers the one called NAME."""

    def __init__(self, address: str) -> None:
        refuse_silent(address)
        self._ray = require("ray", extra="ray")
        self._strategies = require("ray.util.scheduling_strategies", extra="ray")
        self._address = address
        self._out: dict[Any, int] = {}
        self._remote: dict[Callable[..., str], Any] = {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with self._translated():
            self._ray.init(
                address=address, log_to_driver=False, logging_level=logging.CRITICAL, namespace="negawatt"
            )

    def do_nodes(self) -> list[dict[str, Any]]:
        """Nodes alive that have processors to give."""
        return [
            {"id": each["NodeID"], "cpus": float(each["Resources"]["CPU"])}
            for each in self._ray.nodes()
            if each["Alive"] and each["Resources"].get("CPU", 0) >= 1
        ]

    def do_send(self, node: str, cpus: float, text: str, number: int) -> None:
        self._out[self._on(node, _errand, cpus).remote(text)] = number

    def do_done(self, timeout_s: float) -> list[dict[str, Any]]:
        """Errands that have ended; waits for one at most so long."""
        if not self._out:
            return []
        ready, _ = self._ray.wait(list(self._out), num_returns=1, timeout=timeout_s)
        answers = []
        for each in ready:
            number = self._out.pop(each)
            try:
                with self._translated():
                    answers.append({"number": number, "answer": self._ray.get(each)})
            except NegawattError as exc:
                answers.append({"number": number, "lost": str(exc)})
        return answers

    def do_recall(self) -> None:
        """Take back what no node has begun or wants to finish."""
        for each in self._out:
            with suppress(Exception):
                self._ray.cancel(each, force=True)
        self._out.clear()

    def do_deliver(self, node: str, parcel: Mapping[str, Any]) -> None:
        """Send a model to a node, piece by piece."""
        delivery = delivery_name()
        for name, offset, data in Parcel.from_json(parcel).pieces():
            self._told(self._on(node, _accept, 0).remote(parcel, delivery, name, offset, data))
        self._told(self._on(node, _seal, 0).remote(parcel, delivery))

    def _told(self, waiting: Any) -> None:
        if error := self._ray.get(waiting, timeout=DELIVERED_WITHIN_S):
            raise NegawattError(error)

    def _on(self, node: str, function: Callable[..., str], cpus: float) -> Any:
        strategy = self._strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        options = {"num_cpus": cpus, "max_retries": 0, "scheduling_strategy": strategy}
        return self._remote[function].options(**options)

    def answered(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        try:
            with self._translated():
                return {"answer": getattr(self, f"do_{request['do']}")(**request["with"])}
        except Lost as exc:
            return {"lost": str(exc)}
        except NegawattError as exc:
            return {"error": str(exc)}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        exceptions = self._ray.exceptions
        gone = (
            exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError,
            exceptions.TaskUnschedulableError, exceptions.ObjectLostError, exceptions.OutOfMemoryError,
            exceptions.TaskCancelledError, exceptions.GetTimeoutError,
        )  # fmt: skip
        try:
            yield
        except NegawattError:
            raise
        except gone as exc:
            raise Lost(f"{type(exc).__name__}: {_first_line(exc)}") from exc
        except exceptions.RayTaskError as exc:
            cause = exc.cause if isinstance(exc.cause, BaseException) else exc
            raise NegawattError(f"it cannot run Negawatt: {_first_line(cause)}") from exc
        except Exception as exc:
            raise NegawattError(f"the Ray cluster at {self._address} fails: {_first_line(exc)}") from exc


# What runs in Ray's processes on the nodes. It is named, not sent: nodes have the package themselves.


def _errand(text: str) -> str:
    from negawatt.tuning.node import carried_out

    return carried_out(text)


def _accept(told: Mapping[str, Any], delivery: str, name: str, offset: int, data: bytes) -> str:
    try:
        Parcel.from_json(told).accept(delivery, name, offset, data)
    except NegawattError as exc:
        return str(exc)
    return ""


def _seal(told: Mapping[str, Any], delivery: str) -> str:
    try:
        Parcel.from_json(told).seal(delivery)
    except NegawattError as exc:
        return str(exc)
    return ""


def _first_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__).rstrip(".")


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints must not tear our lines

    def say(answer: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError):  # nobody waits any more
            out.write(json.dumps(answer) + "\n")

    try:
        connection = Connection(sys.argv[1])
    except NegawattError as exc:
        say({"error": str(exc), "kind": type(exc).__name__})
        return
    say({"answer": None})
    for line in sys.stdin.buffer:
        say(connection.answered(json.loads(line)))


if __name__ == "__main__":
    from negawatt.tuning import cluster_worker  # by this name nodes know it, not as the main module

    cluster_worker.main()
