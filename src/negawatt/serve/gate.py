"""`KeyGate`: the gate with keys, rate limits, budgets and a ledger behind it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from negawatt.carbon import KWH_J, Factor
from negawatt.database import DatabaseError
from negawatt.energy import Energy
from negawatt.serve.account import Account, Hold
from negawatt.serve.admission import Caller, Estimate, Refused
from negawatt.serve.budget import Decision, Spending
from negawatt.serve.clerk import Clerk
from negawatt.serve.keys import Key, KeyRefused, Keys
from negawatt.serve.rates import Rates
from negawatt.serve.receipt import Receipt

BUSY_RETRY_S = 1.0
"""When to come again for a budget that running requests hold."""

WRITTEN_S = 0.5
"""So long a request waits, near a budget's end, for receipts to be written."""

Cost = Callable[[str, int, int], Energy]
"""Joules of a request at most: by model, tokens read and tokens written; missing where nothing is known."""

_log = logging.getLogger("negawatt.serve.gate")


class KeyGate:
    """Knows callers by their keys, holds them to rates and budgets, and writes every receipt down.

    Implements `negawatt.serve.admission.Gate`.

    Args:
        keys: who may call; None on loopback, where everybody is one caller without a name.
        account: budgets and ledger.
        cost: what a request would cost with another model or fewer tokens than it asked for; without it the
            estimate's own energy is taken in proportion to the tokens.
        intensity: grams a kWh at this moment, or None where the grid is not known.
        clock: seconds since the epoch.

    Attributes:
        account: the budgets.
        clerk: writes receipts down and gives holds back: `settle`, `release` and `charge` do not wait for it.
    """

    def __init__(
        self,
        keys: Keys | None,
        account: Account,
        *,
        rates: Rates | None = None,
        cost: Cost | None = None,
        intensity: Callable[[], Factor | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys, self.account, self._rates = keys, account, rates or Rates()
        self._cost, self._intensity, self._clock = cost, intensity, clock
        self._seen: dict[str, Key] = {}
        self.clerk = Clerk(account)

    def caller(self, authorization: str | None) -> Caller:
        """
        Raises:
            Refused: 401 for no key that holds; 503 where that cannot be looked up.
        """
        if self._keys is None:
            return Caller()
        try:
            key = self._keys.check(authorization)
        except KeyRefused as exc:
            raise Refused(str(exc), status=401, code="invalid_api_key") from exc
        except DatabaseError as exc:
            raise _unavailable(exc) from exc
        return self._let_in(key)

    def known(self, key_id: str) -> Caller:
        """The caller of a key by its id, for work that the key left behind.

        Raises:
            Refused: 401, the key holds no longer.
        """
        if self._keys is None:
            return Caller()
        try:
            key = self._keys.held(key_id)
        except KeyRefused as exc:
            raise Refused(str(exc), status=401, code="invalid_api_key") from exc
        return self._let_in(key)

    def _let_in(self, key: Key) -> Caller:
        self._seen[key.id] = key
        return Caller(key.id, key.team, key.priority)

    def reserve(self, caller: Caller, estimate: Estimate) -> KeyReservation:
        """
        Raises:
            Refused: 429 for rates and budgets, with when to come again; 503 where they cannot be looked up.
        """
        taken = estimate.input_tokens + estimate.output_tokens
        key = self._seen.get(caller.key_id)
        if key is not None:
            self._rates.take(key, taken, requests=0 if estimate.follows else 1)
        factor = self._intensity()

        def price(model: str, output_tokens: int) -> Spending:
            return self._price(estimate, model, output_tokens, factor)

        try:
            decision, hold = self._hold(caller, estimate, price)
        except DatabaseError as exc:
            self._rates.correct(caller.key_id, taken, request=not estimate.follows)
            raise _unavailable(exc) from exc
        if hold is None:
            self._rates.correct(caller.key_id, taken, request=not estimate.follows)
            raise self._refusal(decision)
        return KeyReservation(self, caller.key_id, taken, decision, hold)

    def charge(self, receipt: Receipt) -> None:
        self.clerk.settle(None, receipt)

    def close(self) -> None:
        """Write down what is left, and give back what is held.

        Raises:
            DatabaseError: that is not possible.
        """
        if not self.clerk.close():
            _log.error("%d receipts could not be written", self.clerk.waiting)
        self.account.close()

    def _hold(
        self, caller: Caller, estimate: Estimate, price: Callable[[str, int], Spending]
    ) -> tuple[Decision, Hold | None]:
        asked = caller.key_id, caller.team, estimate.model, estimate.output_tokens, price
        unwritten = self.clerk.waiting  # looked at before: it may be written by the time of the answer
        deferred, fixed = caller.deferred, estimate.fixed
        decision, hold = self.account.hold(*asked, deferred=deferred, fixed=fixed)
        # What has ended and is only not written yet must not be what stands in the way.
        if hold is None and decision.busy and unwritten and self.clerk.flush(WRITTEN_S):
            return self.account.hold(*asked, deferred=deferred, fixed=fixed)
        return decision, hold

    def _price(self, estimate: Estimate, model: str, output_tokens: int, factor: Factor | None) -> Spending:
        tokens = estimate.input_tokens + output_tokens
        if self._cost is not None:
            energy = self._cost(model, estimate.input_tokens, output_tokens)
        else:
            asked = estimate.input_tokens + estimate.output_tokens
            energy = estimate.energy.scaled(tokens / asked) if asked else estimate.energy
        joules = math.inf if energy.high_j is None else energy.high_j
        grams = math.nan if factor is None else joules / KWH_J * factor.high
        return Spending(joules, grams, float(tokens), 0.0 if estimate.follows else 1.0)

    def _refusal(self, decision: Decision) -> Refused:
        budget = decision.refusal
        assert budget is not None
        whose = f"the budget of {budget.owner} per {budget.period.text}"
        if decision.why == "unknown":
            return Refused(
                f"{whose} limits grams, and this server knows no carbon intensity; its owner has to name one",
                status=503,
                kind="server_error",
                code="intensity_unknown",
            )
        if decision.busy:
            return Refused(
                f"{whose} is held by running requests ({decision.why}); come again in {BUSY_RETRY_S:g} s",
                status=429,
                kind="insufficient_quota",
                code="budget_busy",
                retry_after_s=BUSY_RETRY_S,
            )
        now_s = self._clock()
        if decision.why == "defer":
            message = f"{whose} is nearly used up: only batches are let in (POST /v1/batches)"
            code = "budget_defer"
        elif decision.why == "refuse":
            message, code = f"{whose} is used up to where its owner refuses requests", "budget_exhausted"
        else:
            message, code = f"{whose} has too few {decision.why} left for this request", "budget_exhausted"
        return Refused(
            message,
            status=429,
            kind="insufficient_quota",
            code=code,
            retry_after_s=max(1.0, budget.period.renewed_s(now_s) - now_s),
        )


class KeyReservation:
    """What a request holds of rates and budgets; ends once, whatever is called how often."""

    def __init__(self, gate: KeyGate, key_id: str, taken: int, decision: Decision, hold: Hold) -> None:
        self._gate, self._key_id, self._taken, self._hold = gate, key_id, taken, hold
        self.model, self.output_tokens = decision.model, decision.output_tokens
        self._ended = False

    def settle(self, receipt: Receipt) -> None:
        if not self._ended:
            self._ended = True
            needed = receipt.input_tokens + receipt.output_tokens
            self._gate._rates.correct(self._key_id, self._taken - needed)
            self._gate.clerk.settle(self._hold, receipt)

    def release(self) -> None:
        if not self._ended:
            self._ended = True
            self._gate._rates.correct(self._key_id, self._taken)
            self._gate.clerk.release(self._hold)


def _unavailable(exc: DatabaseError) -> Refused:
    _log.error("%s", exc)
    return Refused(
        "the server cannot look up keys and budgets now",
        status=503,
        kind="server_error",
        code="database_unavailable",
        retry_after_s=5.0,
    )
