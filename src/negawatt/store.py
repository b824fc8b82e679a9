"""`Store`: runs kept in a database besides their folders, so that other folders and machines go on with them.

A run has in the database the name of its folder. What it appends is committed there first and then written
into the folder: a folder may lack the last record, and gets it when the run is next taken up; the database
never does. Two processes cannot write to one run: its name is held in the database, and every record has its
number, which only one of them can be the first to use.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from negawatt.database import Database, DatabaseError, Held, Session, Unreachable
from negawatt.errors import NegawattError, RunError
from negawatt.home import write_json, written_beside
from negawatt.run import Run

PATIENCE_S = 60.0
"""How long a server that is being started anew is waited for."""
_TABLES = (
    """CREATE TABLE IF NOT EXISTS negawatt_runs (
        name TEXT PRIMARY KEY, manifest TEXT NOT NULL, result TEXT)""",
    """CREATE TABLE IF NOT EXISTS negawatt_records (
        run TEXT NOT NULL REFERENCES negawatt_runs (name), number INTEGER NOT NULL, kind TEXT NOT NULL,
        record TEXT NOT NULL, PRIMARY KEY (run, number))""",
)


class Store:
    """A database of runs.

    Args:
        url: as `Database` takes it.

    Raises:
        UsageError: no such kind of URL.
        RunError: it cannot be opened.
        MissingDependency: PostgreSQL is asked for and psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self._database = Database(url)
            self._database.create(_TABLES)
        except DatabaseError as exc:
            raise RunError(f"runs cannot be kept: {exc}") from exc
        self.shown = self._database.shown

    def take_up(self, path: Path) -> Journal:
        """Hold the name of a folder, and lay out there what the database has of its run, if any.

        Raises:
            RunError: another process writes to the run, or the folder holds something else.
        """
        name = path.name
        try:
            hold = self._database.hold(f"run {name}")
        except DatabaseError as exc:
            raise RunError(str(exc)) from exc
        journal = Journal(self._database, name, hold)
        try:
            self._lay_out(journal, path)
        except DatabaseError as exc:
            journal.close()
            raise RunError(str(exc)) from exc
        except BaseException:
            journal.close()
            raise
        return journal

    def _lay_out(self, journal: Journal, path: Path) -> None:
        with self._database.read() as session:
            found = session.execute(
                "SELECT manifest, result FROM negawatt_runs WHERE name = ?", (journal.name,)
            )
            lines = session.execute(
                "SELECT record FROM negawatt_records WHERE run = ? ORDER BY number", (journal.name,)
            )
        here = _manifest(path)
        if not found:
            if here.get("kept_in", self.shown) != self.shown:
                raise RunError(f"{path} is kept in {here['kept_in']}; name that, or choose another folder")
            return
        manifest, result = json.loads(found[0][0]), found[0][1]
        if path.exists() and any(path.iterdir()) and here.get("id") != manifest["id"]:
            raise RunError(
                f"{path} holds something else than the run {journal.name} in {self.shown}; choose another "
                "folder"
            )
        write_json(path / "run.json", manifest)
        with written_beside(path / "records.jsonl") as place:
            place.write_text("".join(f"{line}\n" for (line,) in lines), "utf-8")
        if result is not None:
            write_json(path / "result.json", json.loads(result))
        journal.count = len(lines)


class Journal:
    """One run in the database, as `Run.journal` wants it.

    Attributes:
        name: of the run.
        count: records that it has.
    """

    def __init__(self, database: Database, name: str, hold: Any) -> None:
        self.name, self.count = name, 0
        self._database, self._hold = database, hold

    def keep(self, run: Run) -> None:
        """From now on, all that comes into the run comes here first. What it holds already is taken in.

        Raises:
            RunError: it cannot be kept.
        """
        if run.manifest.get("kept_in") != self._database.shown:
            run.update(kept_in=self._database.shown, id=run.manifest.get("id") or secrets.token_hex(16))
        records = [(str(r["record"]), json.dumps(r, ensure_ascii=False)) for r in run.records()]
        manifest = json.dumps(run.manifest, ensure_ascii=False)

        def insert(session: Session) -> None:
            if session.execute("SELECT 1 FROM negawatt_runs WHERE name = ?", (self.name,)):
                return
            session.execute("INSERT INTO negawatt_runs (name, manifest) VALUES (?, ?)", (self.name, manifest))
            session.execute_all(
                "INSERT INTO negawatt_records (run, number, kind, record) VALUES (?, ?, ?, ?)",
                [(self.name, number, *record) for number, record in enumerate(records)],
            )

        self._write(insert)
        self.count = len(records)
        run.journal = self

    def append(self, kind: str, line: str) -> None:
        """One committed row. A row that another process put there first ends this one's writing."""
        number = self.count

        def insert(session: Session) -> None:
            there = session.execute(
                "SELECT record FROM negawatt_records WHERE run = ? AND number = ?", (self.name, number)
            )
            if not there:
                session.execute(
                    "INSERT INTO negawatt_records (run, number, kind, record) VALUES (?, ?, ?, ?)",
                    (self.name, number, kind, line),
                )
            elif there[0][0] != line:  # else it is ours: the connection was lost after it was committed
                raise RunError(f"another process writes to the run {self.name} in {self._database.shown}")

        self._write(insert)
        self.count += 1

    def manifest(self, content: Mapping[str, Any]) -> None:
        self._set("manifest", content)

    def result(self, content: Mapping[str, Any]) -> None:
        self._set("result", content)

    def close(self) -> None:
        self._hold.close()
        self._database.close()

    def _set(self, column: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        statement = {
            "manifest": "UPDATE negawatt_runs SET manifest = ? WHERE name = ?",
            "result": "UPDATE negawatt_runs SET result = ? WHERE name = ?",
        }[column]
        self._write(lambda session: session.execute(statement, (text, self.name)))

    def _write(self, work: Callable[[Session], object]) -> None:
        """One transaction, durable; a server that is not there for the moment is waited for."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                if not self._hold.lasts():
                    self._hold.close()
                    self._hold = self._database.hold(f"run {self.name}")
                with self._database.write(f"run {self.name}") as session:
                    work(session)
                return
            except Unreachable as exc:
                if time.monotonic() > until:
                    raise RunError(
                        f"the run cannot be kept: {exc}; what it has is safe, and the same command goes on"
                    ) from exc
                time.sleep(0.5)
            except (Held, DatabaseError) as exc:
                raise RunError(f"the run cannot be kept: {exc}") from exc


def _manifest(path: Path) -> dict[str, Any]:
    """Manifest of the run in a folder; empty where there is none."""
    if not (path / "run.json").exists():
        return {}
    try:
        return Run.open(path).manifest
    except NegawattError as exc:
        raise RunError(str(exc)) from exc
