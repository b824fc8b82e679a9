"""Who may ask, and whether there is budget for it: the seam between the server and its gate.

The server asks the gate twice a request: who the caller is, and for a reservation of what the request may
cost at most. Every reservation ends in exactly one call of `Reservation.settle` (with the receipt, whatever
the outcome) or `Reservation.release` (nothing was spent). Both of these, and `Gate.charge`, come from the
server's event loop and return at once: what takes longer, the gate does elsewhere. `Gate.caller` and
`Gate.reserve` may wait for a database: the server calls them from threads (`negawatt.serve.desk.Desk`),
several at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from negawatt.energy import Energy
from negawatt.errors import NegawattError
from negawatt.serve.receipt import Receipt


class Refused(NegawattError):
    """A request that the gate or the server turns away, as OpenAI's clients expect to be told.

    Attributes:
        status: of HTTP: 401, 403, 413, 429, 503, …
        kind: the error's ``type``, such as ``invalid_request_error`` or ``insufficient_quota``.
        code: the error's ``code``, or None.
        param: the field of the request that it is about, or None.
        retry_after_s: when to come again, for 429 and 503; None where coming again is no use.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.retry_after_s = retry_after_s


def not_ready(model: str, why: object) -> Refused:
    """The error of a model that cannot be loaded."""
    said = f"{model} cannot be run at the moment: {why}"
    return Refused(said, status=503, kind="server_error", code="model_not_ready")


def shutting_down() -> Refused:
    """The error of a request that comes while the server ends."""
    return Refused(
        "the server is shutting down; try another one", status=503, kind="server_error",
        code="shutting_down", retry_after_s=5,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        key_id: public name of the key, never the key itself; empty where the server has no keys.
        team: that the key belongs to; may be empty.
        priority: of two waiting requests that of the higher priority goes first.
        deferred: the request comes from a batch, which budgets let in when they put off what can wait.
    """

    key_id: str = ""
    team: str = ""
    priority: int = 0
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request may cost at most.

    Attributes:
        model: that was asked for.
        input_tokens: of the prompt.
        output_tokens: most that may be generated, over all ``n`` answers.
        energy: joules of these, by the model's cost; missing where nothing is known yet.
        fixed: no other model can answer: vectors of two models cannot be compared.
        follows: it is a further part of a request that is counted already.
    """

    model: str
    input_tokens: int
    output_tokens: int
    energy: Energy
    fixed: bool = False
    follows: bool = False


class Reservation(Protocol):
    """A part of a budget, held until it is settled or released.

    Attributes:
        model: that shall answer: the one asked for, or a smaller one near the limit.
        output_tokens: most tokens to generate over all answers: what was asked for, or fewer.
    """

    @property
    def model(self) -> str: ...

    @property
    def output_tokens(self) -> int: ...

    def settle(self, receipt: Receipt) -> None:
        """Charge what the request really cost, and give back the rest."""

    def release(self) -> None:
        """Give everything back: nothing was spent."""


class Gate(Protocol):
    """Knows callers and their budgets."""

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this ``Authorization`` header.

        Raises:
            Refused: nobody that may ask (401).
        """

    def reserve(self, caller: Caller, estimate: Estimate) -> Reservation:
        """Hold what the request may cost.

        Raises:
            Refused: there is no budget, or too many requests (429), or the key may not (403).
        """

    def charge(self, receipt: Receipt) -> None:
        """Note a cost that nobody reserved: a warm-up, or idle time."""


@dataclass(frozen=True, slots=True)
class _Free:
    model: str
    output_tokens: int

    def settle(self, receipt: Receipt) -> None:
        return

    def release(self) -> None:
        return


class OpenGate:
    """Lets everybody in and keeps no account: what a gate with an account is compared with."""

    def caller(self, authorization: str | None) -> Caller:
        return Caller()

    def reserve(self, caller: Caller, estimate: Estimate) -> Reservation:
        return _Free(estimate.model, estimate.output_tokens)

    def charge(self, receipt: Receipt) -> None:
        return
