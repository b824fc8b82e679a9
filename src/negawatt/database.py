"""`Database`: what several processes share, such as receipts and runs: SQLite, or PostgreSQL by its URL."""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

from negawatt.errors import NegawattError, UsageError, require
from negawatt.home import home

CONNECTIONS = 8
"""Held open at most; a ninth caller waits for one of them."""
WAIT_S = 30.0
"""How long a caller waits for another process to finish its write, or for a connection."""

Row = tuple[Any, ...]


class DatabaseError(NegawattError):
    """The database cannot be opened, read or written."""


class Held(DatabaseError):
    """Another process holds what was asked for."""


class Unreachable(DatabaseError):
    """The server cannot be reached or ended the connection; later it may be there again."""


class Hold(Protocol):
    """A name that this process holds and no other may."""

    def lasts(self) -> bool:
        """Whether it still does: a server that was started anew knows nothing of it."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Session(Protocol):
    """One transaction."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement with ``?`` for every value; its rows, or none."""
        ...

    def execute_all(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that gives no rows once for each of many sets of values."""
        ...


class Database:
    """Tables shared by every process that opens the same URL.

    Statements are written once, in what both databases understand. Reads see whole transactions only.
    Writers that name the same lock follow each other, across processes too; in SQLite all writers do.

    SQLite keeps what was committed when a process is killed. When the machine loses power the last
    transactions may be gone; the ones before them are whole.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, a path, or ``postgresql://…``.

    Attributes:
        shown: the URL for people: without user, password and parameters.

    Raises:
        UsageError: no such kind of URL.
        DatabaseError: it cannot be opened.
        MissingDependency: PostgreSQL is asked for and psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._dialect = _dialect(url)
        self.shown = self._dialect.shown
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = False
        with self.read() as session:
            session.execute("SELECT 1")

    @property
    def is_postgres(self) -> bool:
        return isinstance(self._dialect, _Postgres)

    def create(self, statements: Iterable[str]) -> None:
        """Run statements that make tables and do nothing where these exist."""
        with self.write("schema") as session:
            for statement in statements:
                session.execute(statement)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads, all its statements from one state."""
        with self._transaction(None) as session:
            yield session

    @contextmanager
    def write(self, lock: str, *, durable: bool = True) -> Iterator[Session]:
        """A transaction that writes: all of it happens or, when the block raises, nothing.

        Args:
            lock: writers that name the same one follow each other.
            durable: false for what may be gone when PostgreSQL's machine loses power; it is quicker.
        """
        with self._transaction(lock, durable) as session:
            yield session

    def hold(self, name: str) -> Hold:
        """Hold a name that one process at a time may hold; it is not waited for.

        It is let go of when this process ends, however it ends. Where it is another machine that is gone,
        PostgreSQL notices within a minute.

        Raises:
            Held: another process holds it.
        """
        with self._dialect.translated():
            return self._dialect.hold(name)

    def close(self) -> None:
        """Close the connections that nobody uses; the others close when given back."""
        self._closed = True
        while True:
            try:
                self._free.get_nowait().close()
            except queue.Empty:
                return

    @contextmanager
    def _transaction(self, lock: str | None, durable: bool = True) -> Iterator[Session]:
        dialect = self._dialect
        if not self._slots.acquire(timeout=WAIT_S):
            raise DatabaseError(
                f"{CONNECTIONS} transactions were busy for {WAIT_S:g} s; the database is too slow"
            )
        try:
            with dialect.exclusive(lock), dialect.translated():
                connection = self._begin(lock, durable)
                try:
                    yield _Session(connection, dialect)
                    connection.execute("COMMIT")
                except BaseException:
                    self._give_back(connection, undo=True)
                    raise
                self._give_back(connection)
        finally:
            self._slots.release()

    def _give_back(self, connection: Any, *, undo: bool = False) -> None:
        try:
            if undo:
                connection.execute("ROLLBACK")
        except self._dialect.errors:
            connection.close()  # the transaction ends with it
            return
        if self._closed:
            connection.close()
        else:
            self._free.put(connection)

    def _begin(self, lock: str | None, durable: bool) -> Any:
        try:
            kept = self._free.get_nowait()
        except queue.Empty:
            kept = None
        if kept is not None:
            try:
                self._dialect.begin(kept, lock, durable)
                return kept
            except self._dialect.lost:  # the server was restarted since
                kept.close()
        fresh = self._dialect.connect()
        try:
            self._dialect.begin(fresh, lock, durable)
        except BaseException:
            fresh.close()
            raise
        return fresh


class _Session:
    def __init__(self, connection: Any, dialect: _Sqlite | _Postgres) -> None:
        self._connection, self._dialect = connection, dialect

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        cursor = self._connection.execute(self._dialect.spelled(statement), tuple(values))
        try:
            return cursor.fetchall() if cursor.description else []
        finally:
            cursor.close()

    def execute_all(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        cursor = self._connection.cursor()
        try:
            cursor.executemany(self._dialect.spelled(statement), rows)
        finally:
            cursor.close()


class _HeldFile:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def lasts(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


class _HeldConnection:
    def __init__(self, connection: Any, errors: type[Exception]) -> None:
        self._connection, self._errors = connection, errors

    def lasts(self) -> bool:
        try:
            self._connection.execute("SELECT 1")
        except self._errors:
            return False
        return True

    def close(self) -> None:
        self._connection.close()


class _Sqlite:
    def __init__(self, path: Path) -> None:
        import sqlite3

        self._module: ModuleType = sqlite3
        self.lost: type[Exception] = sqlite3.ProgrammingError
        self.errors: type[Exception] = sqlite3.Error
        self._path, self.shown = path, str(path)
        self._writer = threading.Lock()  # fairer than SQLite's own waiting, which sleeps

    def connect(self) -> Any:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            raise DatabaseError(f"cannot open the database {self._path}: {exc.strerror or exc}") from exc
        connection = self._module.connect(
            self._path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def begin(self, connection: Any, lock: str | None, durable: bool) -> None:
        connection.execute("BEGIN" if lock is None else "BEGIN IMMEDIATE")

    def hold(self, name: str) -> Hold:
        beside = self._path.with_name(
            f"{self._path.name}.{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
        )
        try:
            file = beside.open("w")
        except OSError as exc:
            raise DatabaseError(f"cannot write {beside}: {exc.strerror or exc}") from exc
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            file.close()
            raise Held(f"{name} in {self._path} is in use by another process") from exc
        return _HeldFile(file)

    @contextmanager
    def exclusive(self, lock: str | None) -> Iterator[None]:
        if lock is None:
            yield
            return
        with self._writer:
            yield

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except self._module.Error as exc:
            raise DatabaseError(f"{self._path}: {exc}") from exc

    def spelled(self, statement: str) -> str:
        return statement


class _Postgres:
    def __init__(self, url: str) -> None:
        self._module = require("psycopg", extra="postgres")
        self.lost: type[Exception] = self._module.OperationalError
        self.errors: type[Exception] = self._module.Error
        self._url = url
        self.shown = without_secrets(url)
        self._check()

    def _check(self) -> None:
        """Refuse a URL that is not read as it is meant: errors of it would tell the password."""
        before, at, _ = self._url.partition("://")[2].rpartition("@")
        if at and any(mark in before for mark in "@/?"):
            raise UsageError(
                "the user or password in the database's URL holds @, / or ?; write %40, %2F or %3F, or keep "
                "the password in ~/.pgpass or PGPASSWORD"
            )
        try:
            self._module.conninfo.conninfo_to_dict(self._url)
        except self._module.Error:
            raise UsageError(
                "the database's URL cannot be read; expected postgresql://USER@HOST:PORT/NAME"
            ) from None

    def connect(self) -> Any:
        return self._module.connect(self._url, autocommit=True, connect_timeout=10)

    def hold(self, name: str) -> Hold:
        connection = self.connect()
        try:
            number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            for setting in ("idle TO 15", "interval TO 5", "count TO 4"):  # a machine that is gone lets go
                connection.execute(f"SET tcp_keepalives_{setting}")
            if connection.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone()[0]:
                return _HeldConnection(connection, self.errors)
        except BaseException:
            connection.close()
            raise
        connection.close()
        raise Held(f"{name} in {self.shown} is in use by another process")

    def begin(self, connection: Any, lock: str | None, durable: bool) -> None:
        if lock is None:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return
        number = zlib.crc32(lock.encode()) - 2**31
        quick = "" if durable else "SET LOCAL synchronous_commit TO OFF; "
        connection.execute(f"BEGIN; {quick}SELECT pg_advisory_xact_lock({0x4E57}, {number})")  # one journey

    @contextmanager
    def exclusive(self, lock: str | None) -> Iterator[None]:
        yield

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except self._module.Error as exc:
            lines = str(exc).strip().splitlines()
            kind = Unreachable if isinstance(exc, self.lost) else DatabaseError
            raise kind(f"{self.shown}: {lines[0] if lines else type(exc).__name__}") from exc

    def spelled(self, statement: str) -> str:
        return statement.replace("?", "%s")


def _dialect(url: str) -> _Sqlite | _Postgres:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _Sqlite(Path(url).expanduser().absolute())
    if scheme == "sqlite":
        if not rest.startswith("/") or len(rest) < 2:
            raise UsageError(f"expected sqlite:///FILE (four slashes for an absolute path), not {url!r}")
        return _Sqlite(Path(rest[1:]).expanduser().absolute())
    if scheme in ("postgresql", "postgres"):
        return _Postgres(url)
    hidden = re.sub(r"//\S*@", "//…@", url)
    raise UsageError(f"expected a file, sqlite:///FILE or postgresql://HOST/NAME, not {hidden!r}")


def without_secrets(text: str) -> str:
    """A text in which URLs of PostgreSQL have no user, password or parameters any more."""
    return re.sub(r"(postgres(?:ql)?://)(?:\S*@)?([^\s?]*)(\?\S*)?", r"\1\2", text)


def default_url() -> str:
    """``NEGAWATT_DATABASE``, or a SQLite file in Negawatt's home."""
    return os.environ.get("NEGAWATT_DATABASE") or str(home() / "serve" / "serve.db")
