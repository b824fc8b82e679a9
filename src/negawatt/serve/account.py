"""`Account`: budgets kept: hold before a request, charge after it, forget what dead servers held."""

from __future__ import annotations

import json
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.carbon import GRAMS
from negawatt.database import Database, DatabaseError, Row, Session
from negawatt.errors import UsageError
from negawatt.serve.budget import DAY_S, HOUR_S, Budget, Decision, Period, Price, Spending, Step, Use, decide
from negawatt.serve.ledger import LOCK, ReceiptLedger
from negawatt.serve.receipt import UNASKED, Receipt

FRESH_S = 0.5
"""A budget that was changed is followed by every server after at most so long."""
LEASE_S = 15.0
"""What a server holds is forgotten when it has not been heard of for this long."""

_TABLES = [
    "CREATE TABLE IF NOT EXISTS budgets (owner TEXT NOT NULL, period TEXT NOT NULL, "
    "joules DOUBLE PRECISION, grams DOUBLE PRECISION, tokens DOUBLE PRECISION, requests DOUBLE PRECISION, "
    "steps TEXT NOT NULL, PRIMARY KEY (owner, period))",
    "CREATE TABLE IF NOT EXISTS spending (owner TEXT NOT NULL, grain_s BIGINT NOT NULL, "
    "start_s BIGINT NOT NULL, joules DOUBLE PRECISION NOT NULL, grams DOUBLE PRECISION NOT NULL, "
    "tokens DOUBLE PRECISION NOT NULL, requests DOUBLE PRECISION NOT NULL, "
    "PRIMARY KEY (owner, grain_s, start_s))",
    "CREATE TABLE IF NOT EXISTS reservations (id TEXT PRIMARY KEY, server TEXT NOT NULL, "
    "key_owner TEXT NOT NULL, team_owner TEXT NOT NULL, joules DOUBLE PRECISION NOT NULL, "
    "grams DOUBLE PRECISION NOT NULL, tokens DOUBLE PRECISION NOT NULL, requests DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE IF NOT EXISTS servers (id TEXT PRIMARY KEY, heard_s DOUBLE PRECISION NOT NULL)",
]
_SUM = (
    "COALESCE(SUM(joules), 0), COALESCE(SUM(grams), 0), COALESCE(SUM(tokens), 0), COALESCE(SUM(requests), 0)"
)

_HOLDS = "holds"
"""Whoever holds takes this lock and not the ledger's: a charge turns what was held into what is spent in one
go, so that whoever looks sees the one or the other, and need not wait for the ledger."""
_ADD = (
    "INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner, grain_s, start_s) DO UPDATE SET "
    "joules = spending.joules + excluded.joules, grams = spending.grams + excluded.grams, "
    "tokens = spending.tokens + excluded.tokens, requests = spending.requests + excluded.requests"
)


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held for a running request.

    Attributes:
        id: of the reservation; empty where no budget binds the request and nothing had to be held.
        spending: what is held.
    """

    id: str
    spending: Spending


class Account:
    """Budgets, what was spent of them and what running requests hold.

    Looking whether there is enough and holding it is one transaction, and those follow each other, so that
    requests that race for the last of a budget cannot both have it: spent and held together never exceed
    a limit, and what is overspent is only what a request cost beyond its own hold.

    Args:
        database: shared by all servers.
        ledger: where receipts are appended, in the transaction that charges them.
        clock: seconds since the epoch; servers that share a database need clocks that agree to a second.

    Attributes:
        database: as it was given.
        server: what this server's holds are known by.
    """

    def __init__(
        self, database: Database, ledger: ReceiptLedger, clock: Callable[[], float] = time.time
    ) -> None:
        self.database, self._ledger, self._clock = database, ledger, clock
        self.server = secrets.token_hex(8)
        self._heard_s = -1.0
        self._read_s, self._kept = -math.inf, list[Budget]()
        self._beat: threading.Thread | None = None
        self._beginning = threading.Lock()
        self._closing = threading.Event()
        database.create(_TABLES)

    # -- budgets ----------------------------------------------------------------------------------

    def put(self, budget: Budget) -> None:
        """Set a budget, in place of the one its owner had for the period; servers follow in `FRESH_S`."""
        values = (
            budget.owner,
            budget.period.text,
            *budget.limits,
            json.dumps([str(s) for s in budget.steps]),
        )
        with self.database.write(LOCK) as session:
            session.execute(
                "DELETE FROM budgets WHERE owner = ? AND period = ?", (budget.owner, budget.period.text)
            )
            session.execute("INSERT INTO budgets VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        self._read_s = -math.inf

    def drop(self, owner: str, period: Period) -> None:
        """Take a budget away.

        Raises:
            UsageError: there is none.
        """
        with self.database.write(LOCK) as session:
            gone = session.execute(
                "DELETE FROM budgets WHERE owner = ? AND period = ? RETURNING 1", (owner, period.text)
            )
        self._read_s = -math.inf
        if not gone:
            raise UsageError(f"{owner} has no budget for the period {period.text}")

    def uses(self, owners: Sequence[str] | None = None) -> list[Use]:
        """Every budget, or those of some owners, with what of it is gone."""
        with self.database.read() as session:
            budgets = self._budgets(session, owners)
            return self._used(session, budgets) if budgets else []

    # -- requests ---------------------------------------------------------------------------------

    def hold(
        self,
        key_id: str,
        team: str,
        model: str,
        output_tokens: int,
        price: Price,
        *,
        deferred: bool = False,
        fixed: bool = False,
    ) -> tuple[Decision, Hold | None]:
        """Ask the budgets of a request, and hold what it may cost when they let it in.

        Returns:
            What they say, and the hold; None when they refuse.
        """
        budgets = self._known(_owners(key_id, team))
        if not budgets:
            return Decision(model, output_tokens, Spending()), Hold("", Spending())
        with self.database.write(_HOLDS, durable=False) as session:
            self._forget_the_dead(session)
            used = self._used(session, budgets)
            decision = decide(used, model, output_tokens, price, deferred=deferred, fixed=fixed)
            if decision.refusal is not None:
                return decision, None
            hold = Hold(secrets.token_hex(12), decision.ask)
            session.execute(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (hold.id, self.server, f"key:{key_id}", f"team:{team}", *hold.spending.values),
            )
        self._keep_alive()
        return decision, hold

    def settle(self, hold: Hold | None, receipt: Receipt) -> None:
        """Charge a receipt, write it to the ledger, and give the hold back: all or nothing, and once.

        Energy that is missing is charged as it was held, or as the part that is known if that is more.
        """
        self.settle_all([(hold, receipt)])

    def settle_all(self, settled: Sequence[tuple[Hold | None, Receipt | None]]) -> None:
        """The same for several at once: all of them or none. Without a receipt a hold is given back."""
        sums: dict[tuple[str, int, int], Spending] = {}
        now_s = self._clock()
        with self.database.write(LOCK) as session:
            for hold, receipt in settled:
                self._give_back(session, hold)
                if receipt is None or not self._ledger.append_in(session, receipt):
                    continue
                spent = _spent(hold, receipt)
                for owner in _owners(receipt.key_id, receipt.team):
                    for grain_s in (HOUR_S, DAY_S):
                        place = owner, grain_s, int(now_s // grain_s) * grain_s
                        sums[place] = sums.get(place, Spending()) + spent
            if sums:
                session.execute_all(_ADD, [(*place, *spent.values) for place, spent in sums.items()])

    def release(self, hold: Hold) -> None:
        """Give a hold back: nothing was spent."""
        if hold.id:
            with self.database.write(_HOLDS, durable=False) as session:
                self._give_back(session, hold)

    def close(self) -> None:
        """Give back all that this server holds, and say that it is gone."""
        self._closing.set()
        if self._beat is not None:
            self._beat.join()
        with self.database.write(LOCK) as session:
            session.execute("DELETE FROM reservations WHERE server = ?", (self.server,))
            session.execute("DELETE FROM servers WHERE id = ?", (self.server,))

    # -- inside -----------------------------------------------------------------------------------

    def _budgets(self, session: Session, owners: Sequence[str] | None) -> list[Budget]:
        if owners is None:
            rows = session.execute("SELECT * FROM budgets ORDER BY owner, period")
        else:
            marks = ", ".join("?" * len(owners))
            rows = session.execute(
                f"SELECT * FROM budgets WHERE owner IN ({marks}) ORDER BY owner, period",  # noqa: S608
                owners,
            )
        return [_budget(row) for row in rows]

    def _known(self, owners: list[str]) -> list[Budget]:
        """The budgets of some owners, as they were at most `FRESH_S` ago."""
        now = time.monotonic()
        if now - self._read_s > FRESH_S:
            with self.database.read() as session:
                self._kept = self._budgets(session, None)
            self._read_s = now
        return [budget for budget in self._kept if budget.owner in owners]

    def _used(self, session: Session, budgets: Sequence[Budget]) -> list[Use]:
        """What of some budgets is gone, in one statement."""
        now_s = self._clock()
        parts: list[str] = []
        values: list[Any] = []
        for number, budget in enumerate(budgets):
            period = budget.period
            parts.append(
                f"SELECT {2 * number}, {_SUM} FROM spending "  # noqa: S608
                "WHERE owner = ? AND grain_s = ? AND start_s >= ?"
            )
            values += [budget.owner, period.grain_s, period.start_s(now_s)]
            parts.append(
                f"SELECT {2 * number + 1}, {_SUM} FROM reservations "  # noqa: S608
                "WHERE (key_owner = ? OR team_owner = ? OR ? = 'server') "
                "AND server IN (SELECT id FROM servers WHERE heard_s > ?)"
            )
            values += [budget.owner, budget.owner, budget.owner, now_s - LEASE_S]
        rows = {row[0]: Spending(*row[1:]) for row in session.execute(" UNION ALL ".join(parts), values)}
        return [Use(b, rows[2 * number], rows[2 * number + 1]) for number, b in enumerate(budgets)]

    def _forget_the_dead(self, session: Session) -> None:
        """Delete what servers hold that have not been heard of, and say that this one is there."""
        now_s = self._clock()
        if now_s - self._heard_s > LEASE_S / 3 or now_s < self._heard_s:
            session.execute("DELETE FROM servers WHERE heard_s <= ?", (now_s - LEASE_S,))
            session.execute("DELETE FROM reservations WHERE server NOT IN (SELECT id FROM servers)")
            session.execute(
                "INSERT INTO servers VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET heard_s = excluded.heard_s",
                (self.server, now_s),
            )
            self._heard_s = now_s

    def _give_back(self, session: Session, hold: Hold | None) -> None:
        if hold is not None and hold.id:
            session.execute("DELETE FROM reservations WHERE id = ?", (hold.id,))

    def _keep_alive(self) -> None:
        """From the first hold on, say every few seconds that this server is there."""
        with self._beginning:
            if self._beat is None:
                self._beat = threading.Thread(target=self._beats, name="negawatt-account", daemon=True)
                self._beat.start()

    def _beats(self) -> None:
        while not self._closing.wait(LEASE_S / 3):
            try:
                with self.database.write(_HOLDS, durable=False) as session:
                    self._heard_s = -1.0
                    self._forget_the_dead(session)
            except DatabaseError:
                continue  # it is tried again; whoever asks for a hold meanwhile is told


def _spent(hold: Hold | None, receipt: Receipt) -> Spending:
    """What a receipt charges."""
    joules = receipt.energy.value_j
    if joules is None:
        joules = max(receipt.energy.low_j or 0.0, hold.spending.joules if hold else 0.0)
    carbon = receipt.carbon
    if carbon is not None and carbon.value is not None and carbon.unit == GRAMS:
        grams = carbon.value
    else:
        grams = hold.spending.grams if hold else 0.0
    # What no client asked for is no request, and costs the server alone; of two tries one is a request.
    asked = receipt.outcome not in UNASKED
    tokens = receipt.input_tokens + receipt.output_tokens if asked else 0
    return Spending(joules, grams, float(tokens), float(asked and receipt.outcome != "escalated"))


def _owners(key_id: str, team: str) -> list[str]:
    return ["server", *([f"key:{key_id}"] if key_id else []), *([f"team:{team}"] if team else [])]


def _budget(row: Row) -> Budget:
    owner, period, joules, grams, tokens, requests, steps = row
    parsed = tuple(Step.parse(text) for text in json.loads(steps))
    return Budget(owner, Period(period), joules, grams, tokens, requests, parsed)
