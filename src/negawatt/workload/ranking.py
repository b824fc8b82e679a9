"""Metrics of search: how good the first documents of a ranking are, one score a query, from 0 to 1.

As trec_eval and BEIR (Thakur et al., NeurIPS Datasets and Benchmarks 2021) have them, with relevance as yes
or no; the number behind the @ is how many documents are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

DEPTH = 10
"""Documents of a ranking that are kept, as many as any metric looks at."""


def recall(ranked: Sequence[str], relevant: Collection[str], depth: int) -> float:
    """Share of the relevant documents that are among the first `depth`."""
    return len(set(ranked[:depth]) & set(relevant)) / len(relevant)


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str], depth: int) -> float:
    """1 / the rank of the first relevant document; 0 where none is among the first `depth`."""
    return next((1 / rank for rank, each in enumerate(ranked[:depth], start=1) if each in relevant), 0.0)


def ndcg(ranked: Sequence[str], relevant: Collection[str], depth: int) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, ACM TOIS 2002), gains of 0 or 1."""
    gained = sum(_discount(rank) for rank, each in enumerate(ranked[:depth], start=1) if each in relevant)
    most = sum(_discount(rank) for rank in range(1, min(len(relevant), depth) + 1))
    return gained / most


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


def overlap(ranked: Sequence[str], reference: Sequence[str], depth: int) -> float:
    """Share of the first `depth` documents of a reference's ranking that are among the first `depth` here."""
    return len(set(ranked[:depth]) & set(reference[:depth])) / min(depth, len(reference))


RANKING_METRICS: dict[str, tuple[Callable[[Sequence[str], Collection[str], int], float], int]] = {
    "ndcg@10": (ndcg, 10),
    "mrr@10": (reciprocal_rank, 10),
    "recall@10": (recall, 10),
    "recall@1": (recall, 1),
}
"""Name → how one ranking is judged by its relevant documents, and at what depth."""

OVERLAP = "overlap@10"
"""Agreement with the ranking of a reference, where no document is known to be relevant."""


def depth_of(name: str) -> int:
    """How many documents a metric of this module looks at."""
    return int(name.rpartition("@")[2])
