"""`LatencyProof`: is the 95th percentile of a latency below its limit? A bound on fresh requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.engine import Completion
from negawatt.tuning.verdict import Constraints
from negawatt.workload.sequential import needed_for_quantile, quantile_upper_bound

QUANTILE = 0.95
FIRST_SHARE = 0.88
"""Share of the allowed error for the first candidate whose latency is proved; each one after it gets half of
what is left. With it 61 requests are enough for the first at 95 %."""


@dataclass(frozen=True)
class LatencyProof:
    """One latency against its limit.

    Attributes:
        name: as in a trial's violations.
        bound_ms: the 95th percentile is at most this.
        limit_ms: what it may be.
        confidence: of the bound; below what was asked for where there were too few requests.
        n: requests measured.
        enough: whether the requests were enough for the confidence asked for.
    """

    name: str
    bound_ms: float
    limit_ms: float
    confidence: float
    n: int
    enough: bool

    @property
    def kept(self) -> bool:
        return self.bound_ms <= self.limit_ms

    @property
    def text(self) -> str:
        """The proof in words."""
        few = "" if self.enough else f", all that {self.n} requests can show"
        return (
            f"{self.name} is at most {self.bound_ms:,.4g} at {self.confidence:.1%} confidence{few} "
            f"(limit {self.limit_ms:,.4g})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bound_ms": self.bound_ms,
            "limit_ms": self.limit_ms,
            "confidence": self.confidence,
            "n": self.n,
        }


def latency_confidence(confidence: float, number: int) -> float:
    """Confidence of the bound for the `number`-th candidate whose latency is looked at, from 1."""
    share = FIRST_SHARE if number == 1 else (1 - FIRST_SHARE) / 2 ** (number - 1)
    return 1 - (1 - confidence) * share


def latency_proofs(
    constraints: Constraints, completions: Sequence[Completion], confidence: float
) -> list[LatencyProof]:
    """A bound for each latency that is limited.

    Args:
        completions: answers to requests that the choice of the candidate does not hang on.
        confidence: of each one-sided bound.
    """
    times = [c.token_times_s for c in completions]
    first = [1000 * t[0] for t in times]
    later = [1000 * (t[-1] - t[0]) / (len(t) - 1) for t in times if len(t) > 1]
    asked = (
        ("p95 TTFT (ms)", first, constraints.p95_ttft_ms),
        ("p95 TPOT (ms)", later, constraints.p95_tpot_ms),
    )
    return [_proof(name, values, limit, confidence) for name, values, limit in asked if limit is not None]


def _proof(name: str, values: Sequence[float], limit: float, confidence: float) -> LatencyProof:
    enough = len(values) >= needed_for_quantile(QUANTILE, confidence)
    if enough:
        bound = quantile_upper_bound(values, QUANTILE, confidence)
        return LatencyProof(name, bound, limit, confidence, len(values), True)
    return LatencyProof(name, max(values), limit, 1 - QUANTILE ** len(values), len(values), False)
