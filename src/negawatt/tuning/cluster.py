"""`Cluster`: machines that Ray has joined, by address, as a search sees them: nodes, errands, answers."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from negawatt import errors
from negawatt.errors import NegawattError
from negawatt.tuning.parcel import Parcel

JOINED_WITHIN_S = 90.0
ANSWERED_WITHIN_S = 120.0
DELIVERED_WITHIN_S = 3600.0
ENDED_WITHIN_S = 20.0
"""Seconds for the cluster to take us in, to answer, and to take a model, and for the connection to end."""


class ClusterError(NegawattError):
    """The cluster cannot be reached, or does not do what it is there for."""


class NodeLost(ClusterError):
    """A node, or the process on it that had our errand, is gone."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        cpus: processors that Ray gives out on it; an errand takes all of them, so that Ray puts nothing
            beside it.
    """

    id: str
    cpus: float

    @property
    def name(self) -> str:
        """Short form of the id, for people."""
        return self.id[:12]


class Cluster:
    """A connection to a cluster, by a process of its own; a context manager.

    Args:
        address: ``auto`` (the cluster that this machine is a node of), ``HOST:PORT`` (likewise, by its head)
            or ``ray://HOST:PORT`` (from anywhere).

    Raises:
        MissingDependency: Ray is not installed.
        UsageError: it is no address.
        ClusterError: nothing answers there, or not as a cluster does.
    """

    def __init__(self, address: str) -> None:
        self._tickets: dict[int, object] = {}
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "negawatt.tuning.cluster_worker", address], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            first = self._heard(JOINED_WITHIN_S)
        except BaseException:
            self.close()
            raise
        if "error" in first:
            self.close()
            kind = getattr(errors, first["kind"], ClusterError)
            raise (ClusterError if kind is NegawattError else kind)(first["error"])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; errands that are still out end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def nodes(self) -> list[Node]:
        """Those alive that have processors to give.

        Raises:
            ClusterError: the cluster itself is gone.
        """
        return [Node(each["id"], each["cpus"]) for each in self._ask("nodes")]

    def send(self, node: Node, text: str, ticket: object, *, beside: bool = False) -> None:
        """Have a node do an errand (`negawatt.tuning.node.carried_out`); `done` gives its answer.

        Args:
            ticket: by which the answer is told.
            beside: it may run beside others, and takes no processor.

        Raises:
            ClusterError: the cluster is gone.
        """
        self._count += 1
        self._ask("send", node=node.id, cpus=0 if beside else node.cpus, text=text, number=self._count)
        self._tickets[self._count] = ticket

    def done(self, timeout_s: float) -> Iterator[tuple[Any, str | NodeLost]]:
        """Tickets and answers of errands that have ended; waits for one at most so long.

        Where the cluster is gone, all that are out are lost.
        """
        try:
            found = self._ask("done", timeout_s=timeout_s)
        except ClusterError as exc:
            found = [{"number": number, "lost": str(exc)} for number in self._tickets]
        for each in found:
            ticket = self._tickets.pop(each["number"])
            yield ticket, NodeLost(each["lost"]) if "lost" in each else str(each["answer"])

    def recall(self) -> None:
        """Take back errands that no node has begun, or wants to finish."""
        with suppress(ClusterError):
            self._ask("recall")
        self._tickets.clear()

    def deliver(self, node: Node, parcel: Parcel) -> None:
        """Send a model to a node, piece by piece.

        Raises:
            NodeLost: it is gone.
            ClusterError: it cannot keep the model.
        """
        self._ask("deliver", DELIVERED_WITHIN_S, node=node.id, parcel=parcel.to_json())

    # -- talking to the process ----------------------------------------------------------------------

    def _ask(self, do: str, within_s: float = ANSWERED_WITHIN_S, **fields: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "with": fields}).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ClusterError(self._ended()) from None
        answer = self._heard(within_s)
        if "lost" in answer:
            raise NodeLost(answer["lost"])
        if "error" in answer:
            raise ClusterError(answer["error"])
        return answer["answer"]

    def _heard(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], within_s)[0]:
            self._process.kill()
            self._process.wait()
            raise ClusterError(f"the Ray cluster did not answer within {within_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise ClusterError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> str:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the connection to the Ray cluster {how}"
