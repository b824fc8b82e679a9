"""`Judge`: is a candidate's quality as good as the baseline's? Paired, cached, stopped early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from negawatt.profiling.quality import Quality
from negawatt.profiling.scores import Items, Tick
from negawatt.tuning.answers import Answers
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.workshop import Workshop
from negawatt.workload import (
    Difference,
    QualityItem,
    TrafficItem,
    Workload,
    aggregate,
    metric,
    paired_difference,
    wilson,
)
from negawatt.workload.intervals import normal_quantile
from negawatt.workload.sequential import nominal_levels, shares_of_error
from negawatt.workload.statistics import FEW_CHANGES

SCREEN_FIRST = 40
"""Items of the first look of a screening; the rest are asked only of those that pass it."""
LOOKS = 4
"""How often the proof may look at its data; the looks share the error as `nominal_levels` says."""


@dataclass(frozen=True)
class Proof:
    """Outcome of `Judge.prove`.

    Attributes:
        proved: the drop is at most the limit, with the confidence asked for.
        difference: at the last look.
        reason: why not, in a sentence; empty when proved.
        hasty: it might have been, with more time.
    """

    proved: bool
    difference: Difference
    reason: str = ""
    hasty: bool = False


class Judge:
    """Compares candidates with the baseline on the same items.

    Without a quality set the baseline's own score of every request is 1: it agrees with itself.

    Args:
        workshop, workload: what is judged, and on what.
        baseline: to compare with.
        confidence: of the one-sided bound.
        apart: as in `Scores`.
    """

    def __init__(
        self,
        workshop: Workshop,
        workload: Workload,
        baseline: Candidate,
        confidence: float,
        apart: str = "",
    ) -> None:
        self.workshop, self.workload, self.baseline = workshop, workload, baseline
        self.confidence = confidence
        self.scores = Answers(workshop, workload, baseline, apart)

    def compare(self, candidate: Candidate, items: Items, tick: Tick, confidence: float) -> Difference:
        """The paired difference of a candidate to the baseline; higher is made better."""
        theirs = self.scores.quality(self.baseline, items, tick) if self.scores.labelled else None
        ours = self.scores.quality(candidate, items, tick)
        signs = [self._sign(item) for item in items]
        after = [s * ours.scores[i.id] for s, i in zip(signs, items, strict=True)]
        if theirs is None:
            return paired_difference([1.0] * len(items), after, confidence=confidence)
        before = [s * theirs.scores[i.id] for s, i in zip(signs, items, strict=True)]
        return paired_difference(before, after, confidence=confidence)

    def prove(
        self,
        candidate: Candidate,
        items: Items,
        limit: float,
        *,
        fewest: int,
        tick: Tick,
        time_left: Callable[[], float],
        number: int = 1,
    ) -> Proof:
        """Show that the drop is at most `limit`, looking at growing sets of items, and stop when known.

        The error allowed is divided twice. Over the candidates that are tried one after the other until one
        passes: the `number`-th gets `shares_of_error` of it, so that the chance to accept any that breaks
        the limit stays below the whole. And over the looks at one candidate, by a spending function, so that
        stopping at the first success keeps its share. It stops without success when the drop is shown to be
        larger, when even all items would not prove it at the rate of change seen so far (futility, which
        can only make the test stricter), or when the time is over. Looks are planned on as many items as
        there is time for at the pace of the search's own judging, and on those of a first look at least.

        Args:
            items: held out from the search, at least one.
            limit: on the drop, in the metric's unit.
            fewest: items to look at before success counts.
            tick: told what goes on.
            time_left: seconds that may still be used.
            number: of the candidate among those whose proof was tried, from 1.
        """
        n = self._affordable(candidate, items, fewest, time_left())
        plan = look_plan(n, fewest, (1 - self.confidence) * shares_of_error(number))
        counts, last = [count for count, _ in plan], plan[-1][1]
        started = time.monotonic()
        for (count, confidence), after in zip(plan, [*counts[1:], None], strict=True):
            difference = self.compare(candidate, items[:count], tick, confidence)
            if difference.drop_is_proved_below(limit):
                return Proof(True, difference)
            if -difference.high > limit:
                return Proof(False, difference, f"its quality drops by more than {limit:.2%}")
            if self._futile(difference, limit, len(items), last) or count == len(items):
                return Proof(
                    False,
                    difference,
                    f"with {len(items):,} items a drop of at most {limit:.2%} cannot be proved "
                    f"(after {count:,} the bound was {difference.upper_one_sided:.2%})",
                )
            pace_s = (time.monotonic() - started) / count
            if after is None or pace_s * (after - count) > time_left():
                return Proof(
                    False,
                    difference,
                    f"there was no time for more than {count:,} items, which prove a drop of at most "
                    f"{difference.upper_one_sided:.2%}",
                    hasty=True,
                )
        raise AssertionError("the last look always decides")

    def _affordable(self, candidate: Candidate, items: Items, fewest: int, left_s: float) -> int:
        """How many of the items both can be asked in so many seconds; those of a first look in any case."""
        n, least = len(items), _looks(len(items), fewest)[0]
        while n > least:
            both_s = sum(self.scores.foreseen_s(c, items[:n]) for c in (self.baseline, candidate))
            if both_s <= left_s:
                break
            n = max(least, int(0.9 * n))
        return n

    @staticmethod
    def _futile(difference: Difference, limit: float, n: int, confidence: float, hope: float = 0.5) -> bool:
        """Whether all items would leave the bound above the limit, even at a hopeful reading of this look.

        Hopeful: the true drop, and the true share of changed answers, lie `hope` of the way from what was
        seen to the best end of their intervals. Giving up too early never proves anything wrong, but may
        lose a good candidate.

        Args:
            n: all items that there are.
            confidence: of the bound at the last look.
        """
        drop = max(0.0, difference.drop - hope * (difference.drop + difference.high))
        rate = difference.changed / difference.n
        best_rate = rate - hope * (rate - wilson(difference.changed, difference.n).low)
        now, then = normal_quantile(difference.confidence), normal_quantile(confidence)

        def spread(z: float, rate: float, n: int) -> float:
            """Of a bound on n items, up to a factor: few changes are bounded as a count, many as a mean."""
            return z * math.sqrt(rate / n) + z * z / n

        seen = difference.upper_one_sided - difference.drop
        expected = drop + seen * spread(then, best_rate, n) / spread(now, rate, difference.n)
        if difference.size < 1 and rate * n >= FEW_CHANGES:  # then it counts how far graded scores change
            expected = min(expected, drop + then * difference.size * math.sqrt(rate / n))
        return expected > limit and difference.n < n

    def screen(
        self, candidate: Candidate, items: Items, limit: float, held_out: int, tick: Tick
    ) -> tuple[Difference, str]:
        """A first look on the search's own items; the reason to drop the candidate, or "".

        It is dropped when its drop is shown to exceed the limit, or when a hopeful reading of what was
        seen leaves no prospect of proving the limit on the held-out items.
        """
        last = last_confidence(max(1, held_out), 0, self.confidence)
        for count in dict.fromkeys((min(SCREEN_FIRST, len(items)), len(items))):
            difference = self.compare(candidate, items[:count], tick, self.confidence)
            if -difference.high > limit:
                return difference, f"quality drops: {difference.text}"
            if self._futile(difference, limit, max(held_out, count + 1), last, hope=1.0):
                return difference, (
                    f"{difference.text}: {held_out:,} held-out items are not expected to prove a drop of "
                    f"at most {limit:.2%}"
                )
        return difference, ""

    def summary(self, quality: Quality) -> dict[str, object]:
        """A `Quality` for the record; a mixed quality set is the mean of its scores."""
        if quality.metric != "mixed":
            return quality.to_json()
        found = aggregate("token_f1", list(quality.scores.values()))
        return {
            "metric": "mean score",
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n": found.n,
        }

    def _sign(self, item: QualityItem | TrafficItem) -> float:
        if isinstance(item, TrafficItem):
            return 1.0
        return 1.0 if metric(self.workload.metrics[item.kind]).higher_is_better else -1.0


def look_plan(n: int, fewest: int, error: float) -> list[tuple[int, float]]:
    """For each look the items it has, and the confidence of its one-sided bound.

    Args:
        n: items in all.
        fewest: items of the first look at least.
        error: that all looks together may make.
    """
    counts = _looks(n, fewest)
    levels = nominal_levels(tuple(count / n for count in counts), error)
    return [(count, 1 - level) for count, level in zip(counts, levels, strict=True)]


def last_confidence(n: int, fewest: int, confidence: float) -> float:
    """Confidence of the bound at the last look at the first candidate.

    Args:
        n, fewest: as for `look_plan`.
        confidence: that all looks and candidates together keep.
    """
    return look_plan(n, fewest, (1 - confidence) * shares_of_error(1))[-1][1]


def _looks(n: int, fewest: int) -> list[int]:
    """Growing numbers of items to look at, from `fewest` (or an eighth, or 50) to all."""
    first = min(n, max(fewest, n // 8, 50))
    counts = sorted({min(n, round(first * (n / first) ** (k / (LOOKS - 1)))) for k in range(LOOKS)})
    return [c for c in counts if c == n or c * 1.15 < n]
