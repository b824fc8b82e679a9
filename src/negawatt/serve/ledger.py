"""`ReceiptLedger`: every receipt, so chained that none can be changed, moved or taken out unseen."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from negawatt.carbon import Amount
from negawatt.database import Database, DatabaseError, Row, Session
from negawatt.energy import Energy
from negawatt.serve.receipt import Receipt

ENERGIES = ("energy", "prefill", "decode", "idle")
AMOUNTS = ("carbon", "water", "cost")
_PLAIN = {
    "id": "TEXT NOT NULL UNIQUE",
    "key_id": "TEXT NOT NULL",
    "team": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "created_s": "DOUBLE PRECISION NOT NULL",
    "outcome": "TEXT NOT NULL",
    "input_tokens": "BIGINT NOT NULL",
    "cached_tokens": "BIGINT NOT NULL",
    "output_tokens": "BIGINT NOT NULL",
    "cpu_s": "DOUBLE PRECISION NOT NULL",
    "duration_s": "DOUBLE PRECISION NOT NULL",
    "boundary": "TEXT NOT NULL",
}
_FIGURE = {
    "value": "DOUBLE PRECISION",
    "low": "DOUBLE PRECISION",
    "high": "DOUBLE PRECISION",
    "unit": "TEXT",
    "provenance": "TEXT",
    "reason": "TEXT",
}
COLUMNS: dict[str, str] = {
    **_PLAIN,
    "day": "TEXT NOT NULL",
    **{f"{name}_{part}": kind for name in (*ENERGIES, *AMOUNTS) for part, kind in _FIGURE.items()},
}
"""What exports have and sums are made of, with their kinds; the body says the same as one JSON text."""

LOCK = "account"
"""Whoever appends, or changes what has been spent, holds this lock."""

_FIRST = "0" * 64
_PAGE = 500
_TABLES = [
    "CREATE TABLE IF NOT EXISTS receipts (seq BIGINT PRIMARY KEY, "
    + ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    + ", body TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS receipts_created ON receipts (created_s)",
    "CREATE TABLE IF NOT EXISTS receipts_head (one BIGINT PRIMARY KEY, seq BIGINT NOT NULL, "
    "hash TEXT NOT NULL, seal TEXT NOT NULL)",
]
_SQLITE_GUARDS = [
    f"CREATE TRIGGER IF NOT EXISTS receipts_no_{verb.lower()} BEFORE {verb} ON receipts "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for verb in ("UPDATE", "DELETE")
]
_POSTGRES_GUARDS = [
    "CREATE OR REPLACE FUNCTION receipts_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
    "CREATE OR REPLACE TRIGGER receipts_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON receipts "
    "EXECUTE FUNCTION receipts_append_only()",
]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry: keep it elsewhere, and a ledger that was cut off or begun anew is found out.

    Attributes:
        seq: number of entries.
        hash: of the newest one, which depends on all before it.
    """

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What going through the whole ledger found.

    Attributes:
        head: of what is there.
        faults: sentences, the first ones; none when nothing was changed.
    """

    head: Head
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "receipts": self.head.seq,
            "head": str(self.head),
            "intact": not self.faults,
            "faults": list(self.faults),
        }


class ReceiptLedger:
    """Receipts, append-only.

    Each entry's hash is an HMAC-SHA-256 with the server's secret over the hash before it, its number and
    its text: who can write to the database but lacks the secret can forge no entry. The newest hash is
    sealed the same way, so that cutting off the end shows, unless an older sealed head was kept and put
    back; against that, keep `head` elsewhere. The database itself refuses changes and deletions.

    A receipt says who, when, how much; no prompt and no answer is in it.

    Args:
        database: where it is kept.
        secret: the server's, see `negawatt.serve.keys.server_secret`.
    """

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database, self._secret = database, secret
        database.create([*_TABLES, *(_POSTGRES_GUARDS if database.is_postgres else _SQLITE_GUARDS)])

    def append(self, receipt: Receipt) -> bool:
        """Add a receipt; False when one of its id is there already."""
        with self._database.write(LOCK) as session:
            return self.append_in(session, receipt)

    def append_in(self, session: Session, receipt: Receipt) -> bool:
        """The same within a transaction that holds `LOCK`."""
        if session.execute("SELECT 1 FROM receipts WHERE id = ?", (receipt.id,)):
            return False
        stored = session.execute("SELECT seq, hash, seal FROM receipts_head WHERE one = 1")
        head = Head(*stored[0][:2]) if stored else Head(0, _FIRST)
        if stored and not hmac.compare_digest(stored[0][2], self._seal(head)):
            raise DatabaseError(
                "the ledger's head was changed, or the server's secret is another one; "
                "`negawatt ledger verify` tells more"
            )
        body = json.dumps(receipt.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        new = Head(head.seq + 1, self._link(head.hash, head.seq + 1, body))
        values = (new.seq, *columns_of(receipt).values(), body, new.hash)
        names = ", ".join(["seq", *COLUMNS, "body", "hash"])
        marks = ", ".join("?" * len(values))
        session.execute(f"INSERT INTO receipts ({names}) VALUES ({marks})", values)  # noqa: S608
        session.execute(
            "INSERT INTO receipts_head VALUES (1, ?, ?, ?) ON CONFLICT (one) "
            "DO UPDATE SET seq = excluded.seq, hash = excluded.hash, seal = excluded.seal",
            (new.seq, new.hash, self._seal(new)),
        )
        return True

    def head(self) -> Head:
        """Number and hash of the newest entry."""
        with self._database.read() as session:
            stored = session.execute("SELECT seq, hash FROM receipts_head WHERE one = 1")
        return Head(*stored[0]) if stored else Head(0, _FIRST)

    def receipts(self, since_s: float | None = None, until_s: float | None = None) -> Iterator[Receipt]:
        """The receipts whose requests came in a window, in the order they were settled."""
        for rows, _ in self._pages("body, created_s"):
            for _, body, created_s in rows:
                if (since_s is None or created_s >= since_s) and (until_s is None or created_s < until_s):
                    yield Receipt.from_json(json.loads(body))

    def verify(self, expected: Head | None = None, most_faults: int = 20) -> Verification:
        """Go through every entry.

        Finds changed, inserted, deleted and moved entries, columns that contradict their entry, and an end
        that was cut off.

        Args:
            expected: a head that was noted earlier and must still be part of the ledger.
            most_faults: stop after as many.
        """
        faults: list[str] = []
        at = Head(0, _FIRST)
        seen_expected = expected is None or expected.seq == 0
        for rows, stored in self._pages(f"body, hash, {', '.join(COLUMNS)}"):
            for seq, body, told, *found in rows:
                if seq != at.seq + 1:
                    faults.append(f"entries {at.seq + 1} to {seq - 1} are not there")
                elif not hmac.compare_digest(told, self._link(at.hash, seq, body)):
                    faults.append(f"entry {seq} was changed, or put where it does not belong")
                elif (wrong := _contradiction(body, found)) is not None:
                    faults.append(f"entry {seq}: its column {wrong} was changed")
                at = Head(seq, told)
                seen_expected = seen_expected or at == expected
            if len(rows) < _PAGE:
                faults += self._end_faults(at, stored)
            if len(faults) >= most_faults:
                return Verification(at, tuple(faults[:most_faults]))
        if not seen_expected:
            faults.append(f"the head {expected} that was noted earlier is not part of this ledger")
        return Verification(at, tuple(faults))

    def _end_faults(self, at: Head, stored: list[Row]) -> Iterator[str]:
        if not stored:
            if at.seq:
                yield "the head was removed"
            return
        seq, newest, seal = stored[0]
        if at != (head := Head(seq, newest)):
            yield f"the head tells of {seq} entries; what is there ends with {at.seq}, or another hash"
        if not hmac.compare_digest(seal, self._seal(head)):
            yield "the head was changed, or the server's secret is another one"

    def rows(self) -> Iterator[Row]:
        """Number and columns (see `COLUMNS`) of every entry, in order."""
        for rows, _ in self._pages(", ".join(COLUMNS)):
            yield from rows

    def _pages(self, names: str) -> Iterator[tuple[list[Row], list[Row]]]:
        """Number and columns, and the head of the same state; a page a transaction, so that nobody waits."""
        after = 0
        while True:
            with self._database.read() as session:
                rows = session.execute(
                    f"SELECT seq, {names} FROM receipts WHERE seq > ? ORDER BY seq LIMIT {_PAGE}",  # noqa: S608
                    (after,),
                )
                stored = session.execute("SELECT seq, hash, seal FROM receipts_head WHERE one = 1")
            yield rows, stored
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def _link(self, before: str, seq: int, body: str) -> str:
        return hmac.new(self._secret, f"entry:{before}:{seq}:{body}".encode(), hashlib.sha256).hexdigest()

    def _seal(self, head: Head) -> str:
        return hmac.new(self._secret, f"head:{head}".encode(), hashlib.sha256).hexdigest()


def columns_of(receipt: Receipt) -> dict[str, Any]:
    """What the columns of a receipt hold, in the order of `COLUMNS`."""
    found: dict[str, Any] = {name: getattr(receipt, name) for name in _PLAIN}
    found["day"] = f"{datetime.fromtimestamp(receipt.created_s, UTC):%Y-%m-%d}"
    for name in ENERGIES:
        energy: Energy = getattr(receipt, name)
        figures = (energy.value_j, energy.low_j, energy.high_j, "J", str(energy.provenance), energy.reason)
        found |= {f"{name}_{part}": figure for part, figure in zip(_FIGURE, figures, strict=True)}
    for name in AMOUNTS:
        amount: Amount | None = getattr(receipt, name)
        parts: tuple[Any, ...] = (None,) * len(_FIGURE)
        if amount is not None:
            parts = (
                amount.value,
                amount.low,
                amount.high,
                amount.unit,
                str(amount.provenance),
                amount.reason,
            )
        found |= {f"{name}_{part}": figure for part, figure in zip(_FIGURE, parts, strict=True)}
    return found


def _contradiction(body: str, found: list[Any]) -> str | None:
    """The first column that is not what the entry's text says, or None."""
    told = columns_of(Receipt.from_json(json.loads(body)))
    for (name, value), stored in zip(told.items(), found, strict=True):
        if value != stored:
            return name
    return None
