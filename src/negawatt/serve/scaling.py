"""How many replicas a load is worth: `replicas_worth`, and `ScalingPolicy`, which Ray Serve asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """What the replicas that run tell of one model, in the mean over a while.

    Attributes:
        wait_s: that a request which comes now is expected to wait until it is begun, over the replicas.
        busy: requests under way or waiting, at all replicas together.
        slots: requests that one replica works on at once.
    """

    wait_s: float
    busy: float
    slots: int


@dataclass(frozen=True, slots=True)
class Worth:
    """Attributes:
    wait_s: expected wait beyond which replicas are added.
    waiting_w: joules that it is worth to spare one request one second of waiting.
    least, most: replicas there may be.
    """

    wait_s: float
    waiting_w: float
    least: int
    most: int


def waiting(slots: int, busy: float) -> float:
    """Requests that wait in the mean where `busy` of `slots` are taken: Erlang's C formula and Little's law.

    Requests come at random and each takes a slot for a while; infinite where there are not enough slots.
    """
    if busy >= slots:
        return math.inf
    blocked = 1.0
    for number in range(1, slots + 1):  # Erlang's B formula
        blocked = busy * blocked / (number + busy * blocked)
    queues = blocked * slots / (slots - busy * (1 - blocked))
    return queues * busy / (slots - busy)


def replicas_worth(
    running: int, wanted: int, loads: Sequence[Load], idle_w: float | None, worth: Worth
) -> int:
    """How many replicas there should be.

    Replicas are added when the expected wait passes its limit, as many as bring it back there (work that
    waits is shared by all), but at most twice as many as there are. One is taken away when it draws more
    than it spares: the watts of an idle replica against the requests that would wait without it and do not
    wait with it, each at what a second of its waiting is worth. Both are watts, so nothing has to be weighed
    against anything else. One at a time, because the load is known only for as many as there are.

    Args:
        running: replicas that tell of their load.
        wanted: replicas that there are or will be soon.
        loads: of each model; none: no replica has told of any yet.
        idle_w: that a replica draws beside all requests; None: not known yet, and none is taken away.
        worth: what is too long, and what waiting costs.
    """
    longest_s = max((load.wait_s for load in loads), default=0.0)
    if longest_s > worth.wait_s:
        times = longest_s / worth.wait_s if worth.wait_s > 0 else math.inf
        count = max(wanted, math.ceil(min(times * max(running, 1), 2 * wanted)))
    elif loads and idle_w is not None and wanted > 1:
        spared_w = sum(_spared_w(load, wanted, worth) for load in loads)
        count = wanted - 1 if spared_w <= idle_w else wanted
    else:
        count = wanted
    return min(max(count, worth.least), worth.most)


def _spared_w(load: Load, wanted: int, worth: Worth) -> float:
    """What the last replica is worth to those who ask for a model."""
    without = waiting(load.slots * (wanted - 1), load.busy)
    if math.isinf(without):
        return math.inf
    return worth.waiting_w * (without - waiting(load.slots * wanted, load.busy))


class ScalingPolicy:
    """`replicas_worth` as Ray Serve's controller asks for it, from what `Replica` tells it.

    Args:
        idle_w: watts of a replica that no receipt shows, such as a share of the machine kept on for it.
        worth: fields of `Worth`.
    """

    def __init__(self, idle_w: float, **worth: Any) -> None:
        self._idle_w, self._worth = idle_w, Worth(**worth)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The count, and nothing to remember.

        Args:
            context: ``ray.serve.config.AutoscalingContext``.
        """
        told: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        loads, drawn_w = loads_of(told), list(told.get("idle_w", {}).values())
        idle_w = sum(drawn_w) / len(drawn_w) + self._idle_w if drawn_w else None
        running, wanted = context.current_num_replicas, context.target_num_replicas
        return replicas_worth(running, wanted, loads, idle_w, self._worth), {}


def loads_of(told: Mapping[str, Mapping[Any, float]]) -> list[Load]:
    """The load of each model, from the figures of `negawatt.serve.replica_load.ReplicaLoad` by replica."""
    loads = []
    for name, waits_s in told.items():
        kind, _, model = name.partition(":")
        if kind == "wait_s" and waits_s:
            busy, slots = told[f"busy:{model}"].values(), told[f"slots:{model}"].values()
            loads.append(Load(sum(waits_s.values()) / len(waits_s), sum(busy), round(max(slots))))
    return loads
