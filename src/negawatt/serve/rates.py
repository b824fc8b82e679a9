"""`Rates`: requests and tokens a minute of each key, as token buckets."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from negawatt.serve.admission import Refused
from negawatt.serve.keys import Key

KEYS = 10_000
"""Buckets remembered at most; one that was not asked for the longest is full again."""


class TokenBucket:
    """Holds what a minute brings, fills evenly, and never holds more.

    Args:
        per_minute: what flows in, and the most that is in it.
        now_s: when it is made, full.
    """

    def __init__(self, per_minute: float, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = per_minute, now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much is in it; 0 when it is there; infinite when it never will be."""
        self._fill(now_s)
        if amount > max(self.per_minute, 1.0):
            return math.inf
        return max(0.0, (amount - self._level) * 60 / self.per_minute)

    def take(self, amount: float, now_s: float) -> None:
        """Take out so much; below 0 it has to be made up for. A negative amount is given back."""
        self._fill(now_s)
        self._level = min(max(self.per_minute, 1.0), self._level - amount)

    def _fill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self._at_s) * self.per_minute / 60
        self._level = min(max(self.per_minute, 1.0), self._level + gained)
        self._at_s = max(self._at_s, now_s)


class Rates:
    """Rate limits of the keys at this server.

    Tokens are taken by what a request may need at most and corrected when it is known. Every server counts
    for itself: behind ``n`` replicas a key has up to ``n`` times its rate.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._buckets: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    def take(self, key: Key, tokens: int, *, requests: int = 1) -> None:
        """Take one request, or none, and its tokens, all or nothing.

        Raises:
            Refused: too many; 429 with when to come again, or 400 where it can never be let in.
        """
        now_s = self._clock()
        with self._lock:
            wanted = [
                (what, self._bucket(key.id, what, rate, now_s), amount)
                for what, rate, amount in (
                    ("requests", key.requests_per_minute, float(requests)),
                    ("tokens", key.tokens_per_minute, float(tokens)),
                )
                if rate is not None
            ]
            waits_s = [bucket.wait_s(amount, now_s) for _, bucket, amount in wanted]
            if math.inf in waits_s:
                raise Refused(
                    f"the request may need {tokens} tokens, more than the key's {key.tokens_per_minute:g} a "
                    "minute; ask for fewer",
                    status=400,
                    code="rate_limit_too_small",
                    param="max_tokens",
                )
            for (what, bucket, _), wait_s in zip(wanted, waits_s, strict=True):
                if wait_s > 0:
                    raise Refused(
                        f"the key has {bucket.per_minute:g} {what} a minute; come again in {wait_s:.1f} s",
                        status=429,
                        kind=what,
                        code="rate_limit_exceeded",
                        retry_after_s=wait_s,
                    )
            for _, bucket, amount in wanted:
                bucket.take(amount, now_s)

    def correct(self, key_id: str, tokens: int, *, request: bool = False) -> None:
        """Give back tokens that were taken and not needed; and the request, when it was not let in."""
        now_s = self._clock()
        with self._lock:
            for what, amount in (("tokens", tokens), ("requests", int(request))):
                if amount and (bucket := self._buckets.get((key_id, what))) is not None:
                    bucket.take(-amount, now_s)

    def _bucket(self, key_id: str, what: str, rate: float, now_s: float) -> TokenBucket:
        kept = self._buckets.get((key_id, what))
        if kept is None or kept.per_minute != rate:
            kept = self._buckets[key_id, what] = TokenBucket(rate, now_s)
        self._buckets.move_to_end((key_id, what))
        while len(self._buckets) > KEYS:
            self._buckets.popitem(last=False)
        return kept
