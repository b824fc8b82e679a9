"""`Batches`: batches and their requests in the database, claimed by one runner at a time."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from negawatt.database import Database, Row, Session
from negawatt.energy import Energy, Provenance
from negawatt.serve.batch import Batch, Item, Slice, window_s

_AT_ONCE = 500
_NOTING_S = 600.0
"""A batch that is not noted whole after so long never will be: the server was ended meanwhile."""
_NAMES = tuple(field.name for field in fields(Batch))
_CUT_OFF = {
    "code": "cut_off",
    "message": "the server was ended while it noted the batch; make it anew",
    "line": None,
    "param": None,
}
_TABLES = [
    "CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, owner TEXT NOT NULL, key_id TEXT NOT NULL, "
    "endpoint TEXT NOT NULL, input_file TEXT NOT NULL, completion_window TEXT NOT NULL, "
    "created_s DOUBLE PRECISION NOT NULL, deadline_s DOUBLE PRECISION NOT NULL, status TEXT NOT NULL, "
    "metadata TEXT NOT NULL, errors TEXT NOT NULL, total BIGINT NOT NULL, completed BIGINT NOT NULL, "
    "failed BIGINT NOT NULL, output_file TEXT, error_file TEXT, began_s DOUBLE PRECISION, "
    "ended_s DOUBLE PRECISION, cancelling_s DOUBLE PRECISION, "
    "output_bytes BIGINT NOT NULL, error_bytes BIGINT NOT NULL, "
    "runner TEXT NOT NULL, runner_until_s DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE IF NOT EXISTS batch_items (batch TEXT NOT NULL, number BIGINT NOT NULL, "
    "custom_id TEXT NOT NULL, place BIGINT NOT NULL, length BIGINT NOT NULL, "
    "units DOUBLE PRECISION NOT NULL, done BIGINT NOT NULL, PRIMARY KEY (batch, number))",
    "CREATE TABLE IF NOT EXISTS batch_slices (batch TEXT NOT NULL, start_s DOUBLE PRECISION NOT NULL, "
    "end_s DOUBLE PRECISION NOT NULL, joules DOUBLE PRECISION, low_j DOUBLE PRECISION, "
    "high_j DOUBLE PRECISION, provenance TEXT NOT NULL, units DOUBLE PRECISION NOT NULL)",
]


class Batches:
    """Batches in the database.

    Args:
        database: where they are kept, so that a restart finds them.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        database.create(_TABLES)

    def create(
        self,
        owner: str,
        key_id: str,
        endpoint: str,
        input_file: str,
        window: str,
        metadata: dict[str, Any],
        items: list[Item],
        errors: list[dict[str, Any]],
    ) -> Batch:
        """Note a batch: ready to run, or failed where its file is wrong.

        Its requests are noted some at a time, so that nobody who writes meanwhile waits for all of them.
        """
        now_s = self._clock()
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            key_id=key_id,
            endpoint=endpoint,
            input_file=input_file,
            completion_window=window,
            created_s=now_s,
            deadline_s=now_s + window_s(window),
            status="failed" if errors else "validating",
            metadata=json.dumps(metadata),
            errors=json.dumps(errors),
            total=len(items),
            ended_s=now_s if errors else None,
        )
        with self._database.write("batches") as session:
            marks = ", ".join("?" * len(_NAMES))
            session.execute(
                f"INSERT INTO batches ({', '.join(_NAMES)}) VALUES ({marks})",  # noqa: S608
                [getattr(batch, name) for name in _NAMES],
            )
        if errors:
            return batch
        for first in range(0, len(items), _AT_ONCE):
            rows = [
                (batch.id, i.number, i.custom_id, i.place, i.length, i.units, 0)
                for i in items[first : first + _AT_ONCE]
            ]
            with self._database.write("batches") as session:
                session.execute_all("INSERT INTO batch_items VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return self.change(batch, status="in_progress")

    def find(self, identity: str, owner: str | None = None) -> Batch | None:
        """A batch; None when there is none, or it is somebody else's."""
        with self._database.read() as session:
            return _find(session, identity, owner)

    def all(self, owner: str) -> list[Batch]:
        """Batches of an owner, the newest first."""
        return self._selected("owner = ? ORDER BY created_s DESC, id", (owner,))

    def active(self, runner: str) -> list[Batch]:
        """Batches that a runner has claimed and that have not ended, the earliest deadline first."""
        return self._selected(
            "runner = ? AND status IN ('in_progress', 'cancelling') ORDER BY deadline_s, created_s, id",
            (runner,),
        )

    def waiting(self) -> int:
        """How many requests of all batches that have not ended are not done."""
        with self._database.read() as session:
            [(count,)] = session.execute(
                "SELECT COALESCE(SUM(total - completed - failed), 0) FROM batches "
                "WHERE status IN ('in_progress', 'cancelling')"
            )
        return int(count)

    def claim(self, runner: str, for_s: float) -> None:
        """Take the batches that no living runner has, and keep those that this one has."""
        now_s = self._clock()
        with self._database.write("batches") as session:
            session.execute(
                "UPDATE batches SET runner = ?, runner_until_s = ? WHERE (runner = ? OR runner_until_s < ?) "
                "AND status IN ('in_progress', 'cancelling')",
                (runner, now_s + for_s, runner, now_s),
            )
            session.execute(
                "UPDATE batches SET status = 'failed', ended_s = ?, errors = ? "
                "WHERE status = 'validating' AND created_s < ?",
                (now_s, json.dumps([_CUT_OFF]), now_s - _NOTING_S),
            )

    def leave(self, runner: str) -> None:
        """Give up what a runner has claimed, for others to go on with."""
        with self._database.write("batches") as session:
            session.execute("UPDATE batches SET runner = '', runner_until_s = 0 WHERE runner = ?", (runner,))

    def change(self, batch: Batch, **values: Any) -> Batch:
        """Set fields of a batch; it as it then is."""
        with self._database.write("batches") as session:
            _change(session, batch.id, values)
            found = _find(session, batch.id, None)
        assert found is not None
        return found

    def cancel(self, batch: Batch) -> Batch:
        """Ask for a batch to be ended; what has ended stays as it is."""
        with self._database.write("batches") as session:
            session.execute(
                "UPDATE batches SET status = 'cancelling', cancelling_s = ? "
                "WHERE id = ? AND status = 'in_progress'",
                (self._clock(), batch.id),
            )
            found = _find(session, batch.id, None)
        assert found is not None
        return found

    def left(self, batch: Batch) -> list[Item]:
        """Requests of a batch that are not done yet, in their order."""
        with self._database.read() as session:
            rows = session.execute(
                "SELECT number, custom_id, place, length, units FROM batch_items "
                "WHERE batch = ? AND done = 0 ORDER BY number",
                (batch.id,),
            )
        return [Item(*row) for row in rows]

    def done(self, batch: Batch, item: Item, *, failed: bool, wrote: int) -> None:
        """Count a request as done, and what was written for it as part of the output or error file."""
        kind, bytes_ = ("failed", "error_bytes") if failed else ("completed", "output_bytes")
        with self._database.write("batches") as session:
            session.execute(
                "UPDATE batch_items SET done = 1 WHERE batch = ? AND number = ?", (batch.id, item.number)
            )
            session.execute(
                f"UPDATE batches SET {kind} = {kind} + 1, {bytes_} = {bytes_} + ? WHERE id = ?",  # noqa: S608
                (wrote, batch.id),
            )

    def ran(self, batch: Batch, part: Slice) -> None:
        """Note a while in which a batch ran."""
        energy = part.energy
        with self._database.write("batches") as session:
            session.execute(
                "INSERT INTO batch_slices VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(batch.id, part.start_s, part.end_s, energy.value_j, energy.low_j, energy.high_j),
                    str(energy.provenance),
                    part.units,
                ),
            )

    def slices(self, batch: Batch) -> list[Slice]:
        """When a batch ran, in order."""
        with self._database.read() as session:
            rows = session.execute(
                "SELECT start_s, end_s, joules, low_j, high_j, provenance, units FROM batch_slices "
                "WHERE batch = ? ORDER BY start_s",
                (batch.id,),
            )
        return [Slice(r[0], r[1], Energy(r[2], r[3], r[4], Provenance[r[5].upper()]), r[6]) for r in rows]

    def _selected(self, condition: str, values: tuple[Any, ...]) -> list[Batch]:
        with self._database.read() as session:
            rows = session.execute(f"SELECT {', '.join(_NAMES)} FROM batches WHERE {condition}", values)  # noqa: S608
        return [_batch(row) for row in rows]


def _find(session: Session, identity: str, owner: str | None) -> Batch | None:
    rows = session.execute(f"SELECT {', '.join(_NAMES)} FROM batches WHERE id = ?", (identity,))  # noqa: S608
    found = _batch(rows[0]) if rows else None
    return None if found is None or (owner is not None and found.owner != owner) else found


def _change(session: Session, identity: str, values: dict[str, Any]) -> None:
    assert set(values) <= set(_NAMES)
    names = ", ".join(f"{name} = ?" for name in values)
    session.execute(f"UPDATE batches SET {names} WHERE id = ?", (*values.values(), identity))  # noqa: S608


def _batch(row: Row) -> Batch:
    return Batch(*row)
