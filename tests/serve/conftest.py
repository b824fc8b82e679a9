"""A real PostgreSQL server on loopback, started for the tests, beside SQLite in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from negawatt.serve.database import Database, DatabaseError


def programs() -> Path:
    """The folder of PostgreSQL's own programs; Debian's is not on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        message = "PostgreSQL is not installed; apt-get install postgresql"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found[-1] if found else Path(on_path or "").resolve().parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of an empty server; it refuses to run as root, so there it runs as the user ``postgres``."""
    place = programs()
    user = "postgres" if os.getuid() == 0 else None
    folder = Path("/tmp") / f"negawatt-postgres-{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = folder / "password"
    password.write_text("correct-horse")
    password.chmod(0o644)
    initialised = subprocess.run(
        [
            *(place / "initdb", "-D", folder / "data", "-U", "tester", "-A", "scram-sha-256"),
            *(f"--pwfile={password}", "--no-sync", "--locale=C", "-E", "UTF8"),
        ],
        user=user,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert initialised.returncode == 0, initialised.stderr
    with open(os.devnull, "wb") as nothing:
        process = subprocess.Popen(
            [
                *(place / "postgres", "-D", folder / "data", "-p", str(port), "-c", "fsync=off"),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            ],
            user=user,
            stdout=nothing,
            stderr=nothing,
            cwd="/",
        )
    url = f"postgresql://tester:correct-horse@127.0.0.1:{port}/postgres"
    try:
        for _ in range(200):
            try:
                Database(url).close()
                break
            except DatabaseError as exc:
                last = exc
                assert process.poll() is None, last
                process_wait(process)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


def process_wait(process: subprocess.Popen[bytes]) -> None:
    """A tenth of a second, or until it ends."""
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'serve.db'}")
        yield opened
        opened.close()
        return
    url = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    opened = Database(url.rpartition("/")[0] + "/" + name)
    yield opened
    opened.close()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
