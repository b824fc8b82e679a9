"""`Receipt`: what one request cost, with where the figure comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from negawatt.carbon import Amount
from negawatt.energy import Energy

Outcome = Literal["completed", "escalated", "aborted", "failed", "warm-up", "idle", "lost"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""``escalated``: a cascade's first answer, which was not sure enough; ``aborted``: the client left or the
deadline passed; ``failed``: the engine did; ``warm-up``: work that no client asked for; ``idle``: no request
at all, but what the model's process spent beside all requests; ``lost``: what it spent last when it died or
hung at work, which no client is charged for."""
UNASKED: tuple[Outcome, ...] = ("warm-up", "idle", "lost")
"""Of no request: they cost the server alone."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Joules, tokens and what they turn into, of one request.

    All receipts of a model's process, its ``idle`` ones included, add up to what the meter charged to it.

    Attributes:
        id: of the request, as the client was told it; unique.
        key_id: of the key it was asked with; empty where the server has no keys.
        team: that the key belongs to; may be empty.
        model: name of the model that answered.
        created_s: when the request came, in seconds since the epoch.
        outcome: how it ended; see `OUTCOMES`. What was spent is charged whatever the outcome.
        input_tokens: tokens of the prompt.
        cached_tokens: those of them that were found in the prefix cache and not computed again.
        output_tokens: tokens that were generated, over all ``n`` answers.
        prefill: dynamic energy of reading the prompt.
        decode: dynamic energy of writing the answer.
        idle: its share of what the busy processors would have drawn anyway.
        boundary: where the joules are counted: ``chip``, ``host``, ``wall`` or ``facility``.
        cpu_s: CPU seconds of the model's process behind these joules.
        queued_s: seconds from its arrival to its first engine step.
        first_token_s: seconds from its arrival to its first token, or None where there was none.
        duration_s: seconds from its arrival to its end.
        carbon: grams of CO₂ equivalent, or None where no intensity is configured.
        water: litres, or None where no factors are configured.
        cost: money, or None where no tariff is configured.
    """

    id: str
    key_id: str
    team: str
    model: str
    created_s: float
    outcome: Outcome
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    prefill: Energy
    decode: Energy
    idle: Energy
    boundary: str
    cpu_s: float = 0.0
    queued_s: float = 0.0
    first_token_s: float | None = None
    duration_s: float = 0.0
    carbon: Amount | None = None
    water: Amount | None = None
    cost: Amount | None = None

    @property
    def energy(self) -> Energy:
        """All of it: prefill, decode and the share of idle."""
        return self.prefill + self.decode + self.idle

    def to_json(self) -> dict[str, Any]:
        """What ``usage.energy`` of an answer shows: an ENERGY object with its parts."""
        return {
            **self.energy.to_json(),
            "prefill": self.prefill.to_json(),
            "decode": self.decode.to_json(),
            "idle": self.idle.to_json(),
            "boundary": self.boundary,
            "cpu_s": self.cpu_s,
            "carbon": _amount(self.carbon),
            "water": _amount(self.water),
            "cost": _amount(self.cost),
            "receipt": {
                "id": self.id,
                "key_id": self.key_id,
                "team": self.team,
                "model": self.model,
                "created_s": self.created_s,
                "outcome": self.outcome,
                "input_tokens": self.input_tokens,
                "cached_tokens": self.cached_tokens,
                "output_tokens": self.output_tokens,
                "queued_s": self.queued_s,
                "first_token_s": self.first_token_s,
                "duration_s": self.duration_s,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Receipt:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: a field is missing or impossible.
        """
        try:
            told = data["receipt"]
            if told["outcome"] not in OUTCOMES:
                raise ValueError(f"not a receipt: the outcome {told['outcome']!r} is unknown")
            carbon, water, cost = (
                None if data[name] is None else Amount.from_json(data[name])
                for name in ("carbon", "water", "cost")
            )
            return cls(
                **{name: told[name] for name in told},
                prefill=Energy.from_json(data["prefill"]),
                decode=Energy.from_json(data["decode"]),
                idle=Energy.from_json(data["idle"]),
                boundary=data["boundary"],
                cpu_s=data["cpu_s"],
                carbon=carbon,
                water=water,
                cost=cost,
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"not a receipt: {exc}") from exc


def bill(receipt: Receipt, attempts: Sequence[Receipt] = ()) -> dict[str, Any]:
    """What ``usage.energy`` shows of an answer: its receipt; attempts that came before it are in its totals
    and each a line of its own."""
    told = receipt.to_json()
    if not attempts:
        return told
    everything = (receipt, *attempts)
    told |= sum_of(everything).to_json()
    told["cpu_s"] = sum(each.cpu_s for each in everything)
    for name in ("carbon", "water", "cost"):
        amounts = [amount for each in everything if (amount := getattr(each, name)) is not None]
        told[name] = _amount(Amount.total(amounts, amounts[0].unit)) if amounts else None
    told["attempts"] = [attempt.to_json() for attempt in attempts]
    return told


def sum_of(receipts: Sequence[Receipt]) -> Energy:
    """Joules of several receipts together."""
    whole = receipts[0].energy
    for receipt in receipts[1:]:
        whole += receipt.energy
    return whole


def _amount(amount: Amount | None) -> dict[str, Any] | None:
    return None if amount is None else amount.to_json()
