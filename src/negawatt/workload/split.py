"""Drawing items: an order in which every beginning is a fair, stratified sample."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from negawatt.workload.items import (
    ChooseItem,
    ClassifyItem,
    QualityItem,
    TrafficItem,
    prompt_text,
)

Item = TypeVar("Item", TrafficItem, QualityItem)


def draw_order(items: Sequence[Item], seed: int) -> list[Item]:
    """Every item once, so ordered that the first k hold each stratum in proportion, for every k.

    Within a stratum items are ordered by a hash of seed and id, which depends neither on the order
    of the file nor on any library's random numbers. Item r of a stratum of m then gets the position
    (r + ½)/m, and all are merged by position; so a smaller sample is always part of a larger one.
    Strata of quality items are kind and right answer; of traffic, quarters by length of the prompt.
    """
    strata: dict[Hashable, list[Item]] = defaultdict(list)
    for item, stratum in zip(items, _strata(items), strict=True):
        strata[stratum].append(item)
    placed = []
    for members in strata.values():
        members.sort(key=lambda item: _rank(item, seed))
        placed += [((r + 0.5) / len(members), _rank(m, seed), m) for r, m in enumerate(members)]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def _rank(item: TrafficItem | QualityItem, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{item.id}".encode()).digest()


def _strata(items: Sequence[TrafficItem | QualityItem]) -> list[Hashable]:
    lengths = [len(prompt_text(i.prompt)) for i in items if isinstance(i, TrafficItem)]
    quarters = np.quantile(lengths, [0.25, 0.5, 0.75]) if lengths else np.zeros(3)
    return [_stratum(item, quarters) for item in items]


def _stratum(item: TrafficItem | QualityItem, quarters: NDArray[np.float64]) -> Hashable:
    match item:
        case TrafficItem():
            return int(np.searchsorted(quarters, len(prompt_text(item.prompt))))
        case ChooseItem() | ClassifyItem():
            return item.kind, item.answer
        case _:
            return item.kind
