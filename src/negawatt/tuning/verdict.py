"""`Constraints`, `Verdict` and the Pareto frontier: what was asked, and the answer in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from negawatt.errors import UsageError
from negawatt.tuning.candidate import Candidate
from negawatt.workload import Difference, Ratio

T = TypeVar("T")


@dataclass(frozen=True)
class Constraints:
    """What a candidate must keep. None: not constrained.

    Attributes:
        max_quality_drop: in the metric's unit (0.01 of accuracy is one point), proved at 95 %.
        p95_ttft_ms: time to first token.
        p95_tpot_ms: time per output token.
        max_memory_bytes: peak memory of the engine's process.
    """

    max_quality_drop: float | None = None
    p95_ttft_ms: float | None = None
    p95_tpot_ms: float | None = None
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} must be a number from 0 up, not {value}")

    def violations(self, figures: dict[str, Any]) -> dict[str, tuple[float, float]]:
        """Name → (found, limit) of each latency or memory limit that figures of a trial exceed."""
        checks = (
            ("p95 TTFT (ms)", (figures.get("ttft_ms") or {}).get("p95"), self.p95_ttft_ms),
            ("p95 TPOT (ms)", (figures.get("tpot_ms") or {}).get("p95"), self.p95_tpot_ms),
            ("peak memory (bytes)", figures.get("peak_rss_bytes"), self.max_memory_bytes),
        )
        return {
            name: (found, limit)
            for name, found, limit in checks
            if limit is not None and found is not None and found > limit
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """What to run, what it saves, and with what confidence.

    Attributes:
        accepted: whether something better than the baseline was found and proved.
        ratio: CPU seconds per token of the baseline over the winner's, in interleaved pairs; None
            where nothing was compared.
        quality: the paired difference to the baseline on held-out items; None where not judged.
        text: the answer in words.
    """

    accepted: bool
    ratio: Ratio | None
    quality: Difference | None
    text: str

    def to_json(self) -> dict[str, Any]:
        ratio, quality = self.ratio, self.quality
        saved = None if ratio is None else [1 - 1 / r for r in (ratio.value, ratio.low, ratio.high)]
        return {
            "saving": saved[0] if saved else None,
            "saving_low": saved[1] if saved else None,
            "saving_high": saved[2] if saved else None,
            "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high, "n": ratio.n}
            if ratio
            else None,
            "quality_drop": quality.drop if quality else None,
            "quality_drop_high": quality.upper_one_sided if quality else None,
            "quality_text": quality.text if quality else None,
            "accepted": self.accepted,
            "text": self.text,
        }


def verdict(
    baseline: Candidate,
    best: Candidate | None,
    ratio: Ratio | None,
    quality: Difference | None,
    constraints: Constraints,
    reasons: Iterable[str] = (),
    *,
    latencies: Iterable[str] = (),
    confidence: float = 0.95,
    unit: str = "token",
) -> Verdict:
    """The verdict in words; ``best`` None means that no candidate passed, for the `reasons` given.

    Args:
        latencies: what is proved of the winner's latencies, in words.
        confidence: that the proofs keep in all; each look at each candidate had to be surer.
        unit: what joules were counted on, as in `negawatt.profiling.Summary`.
    """
    if best is None or ratio is None:
        why = " ".join(reasons) or "Nothing tried was cheaper and kept the constraints."
        return Verdict(False, ratio, quality, f"Keep what you have ({baseline}). {why}")
    if ratio.low <= 1:
        text = (
            f"Keep what you have ({baseline}). The best candidate ({best}) shows no difference: {ratio.text}."
        )
        return Verdict(False, ratio, quality, text)
    saving, low, high = (1 - 1 / r for r in (ratio.value, ratio.low, ratio.high))
    text = (
        f"Run {best}. It spends {ratio.value:.1f} times fewer joules per "
        f"{'generated token' if unit == 'token' else unit} than "
        f"{baseline}: {saving:.0%} less ({low:.1%} to {high:.1%}, {ratio.n} interleaved pairs)."
    )
    words = [text, _quality_words(quality, constraints, confidence), *(f"{each}." for each in latencies)]
    return Verdict(True, ratio, quality, " ".join(words))


def _quality_words(quality: Difference | None, constraints: Constraints, confidence: float) -> str:
    if quality is None:
        return "Quality was not judged."
    words = (
        f"Quality on {quality.n:,} items that the search never saw: {quality.text}; "
        f"the drop is at most {max(0.0, quality.upper_one_sided):.2%} at {quality.confidence:.1%} confidence"
    )
    if constraints.max_quality_drop is None:
        return words + " (no limit was set)."
    return words + (
        f" (limit {constraints.max_quality_drop:.2%}; {confidence:.0%} over all looks and candidates)."
    )


def pareto(points: Iterable[T], costs: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The points that no other point beats: at most as costly in every respect, less in one.

    Of points with equal costs the first is kept. Ordered by their first cost.
    """
    kept: list[tuple[tuple[float, ...], T]] = []
    for cost, point in sorted(((costs(p), p) for p in points), key=lambda pair: pair[0]):
        if not any(all(a <= b for a, b in zip(other, cost, strict=True)) for other, _ in kept):
            kept.append((cost, point))
    return [point for _, point in kept]
