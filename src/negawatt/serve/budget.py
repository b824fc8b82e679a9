"""`Budget`: what a key, a team or the whole server may spend in a period, and what happens near its end."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from negawatt.errors import UsageError

HOUR_S, DAY_S = 3600, 86400
Action = Literal["shorten", "smaller", "defer", "refuse"]

_STEP = re.compile(r"(\d*\.?\d+)=(shorten|smaller|defer|refuse)(?::(.+))?")
_ROLLING = re.compile(r"rolling:(\d+)([hd])")
_OWNER = re.compile(r"server|(key|team):.+")


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent, is held, or may be spent; a limit that is None does not bind.

    Attributes:
        joules, grams: grams of CO₂ equivalent.
        tokens: read and written.
        requests: how many.
    """

    joules: float = 0.0
    grams: float = 0.0
    tokens: float = 0.0
    requests: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def values(self) -> tuple[float, float, float, float]:
        return self.joules, self.grams, self.tokens, self.requests

    def to_json(self) -> dict[str, float]:
        return dict(zip(KINDS, self.values, strict=True))


KINDS = tuple(field.name for field in fields(Spending))


@dataclass(frozen=True, slots=True)
class Period:
    """``day`` or ``month`` (of UTC), or ``rolling:24h``, ``rolling:7d``: so much until now, by whole hours.

    Attributes:
        text: one of these.
    """

    text: str

    def __post_init__(self) -> None:
        if self.text in ("day", "month"):
            return
        if _ROLLING.fullmatch(self.text) is None or not HOUR_S <= self._length_s <= 31 * DAY_S:
            raise UsageError(
                f"expected a period such as day, month, rolling:24h or rolling:7d (at most 31d), "
                f"not {self.text!r}"
            )

    @property
    def _length_s(self) -> int:
        match = _ROLLING.fullmatch(self.text)
        assert match is not None
        return int(match[1]) * (HOUR_S if match[2] == "h" else DAY_S)

    @property
    def grain_s(self) -> int:
        """The length of the buckets that the period is summed from, in seconds."""
        return HOUR_S if self.text.startswith("rolling") else DAY_S

    def start_s(self, now_s: float) -> int:
        """Start of the first bucket that belongs to the period; all of a rolling period's first hour does."""
        if self.text == "day":
            return int(now_s // DAY_S) * DAY_S
        if self.text == "month":
            now = datetime.fromtimestamp(now_s, UTC)
            return int(datetime(now.year, now.month, 1, tzinfo=UTC).timestamp())
        return int((now_s - self._length_s) // HOUR_S) * HOUR_S

    def renewed_s(self, now_s: float) -> float:
        """When something of it is free again at the earliest, in seconds since the epoch."""
        if self.text == "day":
            return self.start_s(now_s) + DAY_S
        if self.text == "month":
            start = datetime.fromtimestamp(self.start_s(now_s), UTC)
            return (start + timedelta(days=32)).replace(day=1).timestamp()
        return (now_s // HOUR_S + 1) * HOUR_S


@dataclass(frozen=True, slots=True)
class Step:
    """What happens from a share of the budget on.

    Attributes:
        at: share that is spent or held, 0 to 1.
        action: ``shorten`` answers to `tokens`, answer with the `smaller` model, ``defer`` what can wait
            (only batches are let in), ``refuse``.
        tokens: of ``shorten``.
        model: of ``smaller``.
    """

    at: float
    action: Action
    tokens: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at <= 1:
            raise UsageError(f"expected a share from 0 to 1 for {self.action}, not {self.at:g}")
        if (self.action == "shorten") != (self.tokens is not None) or (self.tokens or 1) < 1:
            raise UsageError(
                "shorten, and nothing else, needs a number of tokens above 0, such as shorten:64"
            )
        if (self.action == "smaller") != bool(self.model):
            raise UsageError("smaller, and nothing else, needs a model's name, such as smaller:MODEL")

    @classmethod
    def parse(cls, text: str) -> Step:
        """From ``0.8=shorten:64``, ``0.9=smaller:MODEL``, ``0.95=defer`` or ``1=refuse``.

        Raises:
            UsageError: it is none of these.
        """
        match = _STEP.fullmatch(text)
        if match is None or (match[2] == "shorten" and not (match[3] or "").isdecimal()):
            raise UsageError(
                "expected a step such as 0.8=shorten:64, 0.9=smaller:MODEL, 0.95=defer or 1=refuse, "
                f"not {text!r}"
            )
        at, action, argument = float(match[1]), match[2], match[3]
        if action == "shorten":
            return cls(at, "shorten", tokens=int(argument))
        return cls(at, action, model=argument)  # type: ignore[arg-type]

    def __str__(self) -> str:
        argument = self.tokens if self.tokens is not None else self.model
        return f"{self.at:g}={self.action}" + ("" if argument is None else f":{argument}")


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one owner for one period.

    Attributes:
        owner: ``key:ID``, ``team:NAME`` or ``server`` for all requests together.
        period: see `Period`.
        joules, grams, tokens, requests: limits; None where there is none.
        steps: what happens near the limit. Without any, requests that do not fit are refused.
    """

    owner: str
    period: Period
    joules: float | None = None
    grams: float | None = None
    tokens: float | None = None
    requests: float | None = None
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if not _OWNER.fullmatch(self.owner):
            raise UsageError(f"expected an owner such as key:ID, team:NAME or server, not {self.owner!r}")
        if all(limit is None for limit in self.limits):
            raise UsageError("a budget limits at least one of joules, grams, tokens and requests")
        if any(limit is not None and not 0 <= limit < math.inf for limit in self.limits):
            raise UsageError("a budget's limits are numbers of 0 or more")

    @property
    def limits(self) -> tuple[float | None, ...]:
        return self.joules, self.grams, self.tokens, self.requests

    def share(self, used: Spending) -> float:
        """How much of the tightest limit is used; above 1 where it was overspent."""
        shares = [
            (u / limit if limit else math.inf if u else 1.0)
            for limit, u in zip(self.limits, used.values, strict=True)
            if limit is not None
        ]
        return max(shares)

    def short_of(self, used: Spending, ask: Spending) -> str | None:
        """The first kind of which there is too little left for a request, or None."""
        for kind, limit, u, more in zip(KINDS, self.limits, used.values, ask.values, strict=True):
            if limit is not None and (u >= limit if more == math.inf else u + more > limit):
                return kind
        return None

    def left(self, used: Spending) -> list[float]:
        """What is left of each limit, 0 where there is none."""
        return [
            max(0.0, limit - u) if limit is not None else 0.0
            for limit, u in zip(self.limits, used.values, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "period": self.period.text,
            **dict(zip(KINDS, self.limits, strict=True)),
            "steps": [str(step) for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class Use:
    """A budget and what of it is gone.

    Attributes:
        spent: in the period.
        held: by requests that are running.
    """

    budget: Budget
    spent: Spending
    held: Spending

    @property
    def used(self) -> Spending:
        return self.spent + self.held

    @property
    def share(self) -> float:
        return self.budget.share(self.used)


@dataclass(frozen=True, slots=True)
class Decision:
    """How a request may go on.

    Attributes:
        model: that answers.
        output_tokens: most it may write.
        ask: what is held for it.
        refusal: the budget that forbids it, or None.
        why: ``refuse``, ``defer``, ``unknown`` where grams are limited and cannot be told, or the kind of
            which there is too little; empty when it may go on.
        busy: too little is left only because of what running requests hold.
    """

    model: str
    output_tokens: int
    ask: Spending
    refusal: Budget | None = None
    why: str = ""
    busy: bool = False


Price = Callable[[str, int], Spending]
"""What a request costs at most with a model and a number of output tokens; does not fall with these. What is
not known yet is infinite: such a request holds all that is left, so that one runs at a time until more is
known. What this server can never know is not a number: a budget of it lets nobody in."""


def decide(
    uses: Sequence[Use], model: str, output_tokens: int, price: Price, *, deferred: bool, fixed: bool = False
) -> Decision:
    """What the budgets of a request say to it.

    Steps whose share is reached are taken, all that apply: the shortest answer, the last model. What does
    not fit even so is shortened further where a budget that binds has a step ``shorten``, else refused.

    Args:
        uses: every budget that binds it.
        price: what it would cost.
        deferred: it runs from a batch, so ``defer`` does not concern it.
        fixed: no other model can answer, so ``smaller`` does not concern it.
    """
    for use in uses:
        actions = {step.action for step in _active(use)}
        if "refuse" in actions or ("defer" in actions and not deferred):
            why = "refuse" if "refuse" in actions else "defer"
            return Decision(model, output_tokens, price(model, output_tokens), use.budget, why)
    for step in sorted((s for use in uses for s in _active(use)), key=lambda s: s.at):
        if step.model is not None and not fixed:
            model = step.model
        if step.tokens is not None:
            output_tokens = min(output_tokens, step.tokens)
    ask = price(model, output_tokens)
    if math.isnan(ask.grams):
        if blind := [use.budget for use in uses if use.budget.grams is not None]:
            return Decision(model, output_tokens, ask, blind[0], "unknown")
        ask = replace(ask, grams=0.0)
    tight = _tight(uses, ask)
    if tight is not None and all(
        any(step.action == "shorten" for step in use.budget.steps)
        for use in uses
        if use.budget.short_of(use.used, ask) is not None
    ):
        output_tokens = _longest(uses, model, output_tokens, price)
        ask = price(model, output_tokens)
        ask = replace(ask, grams=0.0) if math.isnan(ask.grams) else ask
        tight = _tight(uses, ask)
    if tight is None:
        return Decision(model, output_tokens, _finite(uses, ask))
    use, kind = tight
    busy = use.budget.short_of(use.spent, ask) is None
    return Decision(model, output_tokens, ask, use.budget, kind, busy)


def _active(use: Use) -> list[Step]:
    return [step for step in use.budget.steps if use.share >= step.at]


def _tight(uses: Sequence[Use], ask: Spending) -> tuple[Use, str] | None:
    for use in uses:
        if (kind := use.budget.short_of(use.used, ask)) is not None:
            return use, kind
    return None


def _finite(uses: Sequence[Use], ask: Spending) -> Spending:
    """All that is left in place of what is infinite."""
    left = [use.budget.left(use.used) for use in uses]
    most = [max(kind, default=0.0) for kind in zip(*left, strict=True)] or [0.0] * len(KINDS)
    return Spending(*(room if a == math.inf else a for a, room in zip(ask.values, most, strict=True)))


def _longest(uses: Sequence[Use], model: str, output_tokens: int, price: Price) -> int:
    """Most tokens that every budget has room for, at least 1."""
    low, high = 1, output_tokens
    while low < high:
        middle = (low + high + 1) // 2
        if _tight(uses, price(model, middle)) is None:
            low = middle
        else:
            high = middle - 1
    return low
