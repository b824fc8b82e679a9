"""`Cashier`: writes receipts of one model from its accounts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from negawatt.serve.books import Account, Books
from negawatt.serve.footprint import Footprint
from negawatt.serve.receipt import Outcome, Receipt
from negawatt.serve.task import Task


class Cashier:
    """Args:
    model: name of the model.
    charge: called with receipts that nobody reserved: warm-ups and idle time.
    footprint: turns joules into grams, litres and money.

    Attributes:
        boundary: where the joules are counted.
        beside_since_s: when what is spent beside all requests was last written down, since the epoch.
    """

    def __init__(self, model: str, charge: Callable[[Receipt], None], footprint: Footprint) -> None:
        self._model, self._charge, self._footprint = model, charge, footprint
        self.boundary = "chip"
        self.beside_since_s = time.time()

    def receipt(self, task: Task, outcome: Outcome) -> Receipt:
        """What a request cost, to the last step that it was in."""
        now_s, now = time.time(), time.monotonic()
        return self._written(
            task.account,
            now_s,
            id=task.id,
            key_id=task.caller.key_id,
            team=task.caller.team,
            created_s=task.created_s,
            outcome=outcome,
            input_tokens=task.input_tokens,
            cached_tokens=task.cached_tokens,
            output_tokens=task.output_tokens,
            queued_s=(task.started_s or now) - task.arrived_s,
            first_token_s=None if task.first_token_s is None else task.first_token_s - task.arrived_s,
            duration_s=now - task.arrived_s,
        )

    def beside(self, books: Books, outcome: Outcome) -> None:
        """Charge what a worker spent on no request since the last time, as idle time or a warm-up."""
        books.settle()
        account, books.beside = books.beside, Account()
        self.boundary = books.boundary
        self.of_nobody(account, outcome)

    def of_nobody(self, account: Account, outcome: Outcome) -> None:
        """Charge what no request is charged for."""
        now_s, since_s = time.time(), self.beside_since_s
        self.beside_since_s = now_s
        if account.cpu_s > 0 or account.idle.energy.value_j:
            self._charge(
                self._written(
                    account, now_s, id=f"{outcome}-{self._model}-{now_s:.6f}", key_id="", team="",
                    created_s=since_s, outcome=outcome, input_tokens=0, cached_tokens=0, output_tokens=0,
                    duration_s=now_s - since_s,
                )
            )  # fmt: skip

    def _written(self, account: Account, now_s: float, **facts: Any) -> Receipt:
        prefill, decode, idle = account.prefill.energy, account.decode.energy, account.idle.energy
        whole = prefill + decode + idle
        return Receipt(
            **facts,
            model=self._model,
            prefill=prefill,
            decode=decode,
            idle=idle,
            boundary=self.boundary,
            cpu_s=account.cpu_s,
            carbon=self._footprint.carbon(whole, now_s),
            water=self._footprint.water(whole),
            cost=self._footprint.cost(whole, float(facts["created_s"]), now_s),
        )
