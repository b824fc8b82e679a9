"""A real PostgreSQL server on loopback, started for the tests in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from negawatt.database import Database, DatabaseError


def programs() -> Path:
    """The folder of PostgreSQL's own programs; Debian's is not on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        message = "PostgreSQL is not installed; apt-get install postgresql"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found[-1] if found else Path(on_path or "").resolve().parent


class Server:
    """A server that can be ended and started anew; it refuses to run as root, and is ``postgres`` there.

    Attributes:
        url: of its only database at first, with user and password.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._place = folder, programs()
        self._user = "postgres" if os.getuid() == 0 else None
        folder.mkdir(mode=0o700)
        if self._user:
            shutil.chown(folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        password = folder / "password"
        password.write_text("correct-horse")
        password.chmod(0o644)
        initialised = subprocess.run(
            [
                *(self._place / "initdb", "-D", folder / "data", "-U", "tester", "-A", "scram-sha-256"),
                *(f"--pwfile={password}", "--no-sync", "--locale=C", "-E", "UTF8"),
            ],
            user=self._user,
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        assert initialised.returncode == 0, initialised.stderr
        self.url = f"postgresql://tester:correct-horse@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        """Start it; back when it answers."""
        self._process = subprocess.Popen(
            [
                *(self._place / "postgres", "-D", self._folder / "data", "-p", str(self._port)),
                *("-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            ],
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        for _ in range(200):
            try:
                Database(self.url).close()
                return
            except DatabaseError as exc:
                last = exc
                assert self._process.poll() is None, last
                self._wait(0.1)
        pytest.fail(f"the server does not answer: {last}")

    def stop(self) -> None:
        """End it as an administrator would who does not wait for clients."""
        self._process.send_signal(2)
        self._process.wait(20)

    def _wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return


@contextmanager
def running() -> Iterator[Server]:
    """An empty server."""
    folder = Path("/tmp") / f"negawatt-postgres-{uuid.uuid4().hex}"
    server = None
    try:
        server = Server(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def emptied(url: str) -> Iterator[str]:
    """URL of a new database on a server."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield url.rpartition("/")[0] + "/" + name
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
