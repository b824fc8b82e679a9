"""Databases of either kind: SQLite in a temporary folder, and a real PostgreSQL server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from negawatt.database import Database
from postgres_server import Server, emptied


@pytest.fixture(scope="session")
def postgres(postgres_server: Server) -> str:
    """URL of an empty server."""
    return postgres_server.url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'serve.db'}")
        yield opened
        opened.close()
        return
    with emptied(request.getfixturevalue("postgres")) as url:
        opened = Database(url)
        yield opened
        opened.close()
