"""Runs kept in a database: what is in it, who may write, what survives, and that no password is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from negawatt import store as stores
from negawatt.database import Database, Held, without_secrets
from negawatt.errors import NegawattError, RunError, UsageError
from negawatt.run import Run
from negawatt.store import Store
from postgres_server import Server, emptied, running


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'runs.db'}"
        return
    with emptied(request.getfixturevalue("postgres_server").url) as made:
        yield made


def begun(url: str, path: Path, **manifest: Any) -> Run:
    journal = Store(url).take_up(path)
    run = Run.open(path) if (path / "run.json").exists() else Run.create("tune", path=path, **manifest)
    journal.keep(run)
    return run


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with Database(url).read() as session:
        return session.execute(statement)


def test_each_record_is_a_committed_row_before_the_call_returns(url: str, tmp_path: Path) -> None:
    with begun(url, tmp_path / "one", asked="what") as run:
        run.append("note", {"text": "naïve “quotes” and ? and %s"})
        run.append("trial", {"number": 0})
        found = rows(url, "SELECT number, kind, record FROM negawatt_records ORDER BY number")
        assert [(number, kind) for number, kind, _ in found] == [(0, "note"), (1, "trial")]
        assert [json.loads(text) for *_, text in found] == list(run.records())
        run.update(more=1)
        run.finish({"answer": 42})
    ((manifest, result),) = rows(url, "SELECT manifest, result FROM negawatt_runs WHERE name = 'one'")
    assert json.loads(manifest)["more"] == 1
    assert json.loads(result) == {"answer": 42}


def test_another_folder_of_that_name_goes_on_where_the_first_was(url: str, tmp_path: Path) -> None:
    with begun(url, tmp_path / "here" / "run", asked="what") as first:
        first.append("trial", {"number": 0})
        first.append("trial", {"number": 1})
    with begun(url, tmp_path / "there" / "run") as second:
        assert list(second.records("trial")) == list(first.records("trial"))
        assert second.manifest == first.manifest
        second.append("trial", {"number": 2})
    with begun(url, tmp_path / "here" / "run") as first:  # its folder is behind, and catches up
        assert [r["number"] for r in first.records("trial")] == [0, 1, 2]
        first.finish({"answer": 1})
    Store(url).take_up(tmp_path / "third" / "run").close()
    assert Run.open(tmp_path / "third" / "run").result == {"answer": 1}


def test_what_a_folder_had_before_is_taken_along(url: str, tmp_path: Path) -> None:
    with Run.create("tune", path=tmp_path / "run") as run:
        run.append("trial", {"number": 0})
    begun(url, tmp_path / "run").close()
    assert rows(url, "SELECT run, number FROM negawatt_records") == [("run", 0)]


def test_one_process_writes_to_a_run_and_others_are_told(url: str, tmp_path: Path) -> None:
    with begun(url, tmp_path / "a" / "run"):
        with pytest.raises(RunError, match="in use by another process") as refused:
            Store(url).take_up(tmp_path / "b" / "run")
        assert "correct-horse" not in str(refused.value)
        assert not (tmp_path / "b").exists(), "nothing half-written stays behind"
        begun(url, tmp_path / "b" / "another").close()
    begun(url, tmp_path / "b" / "run").close()


def test_a_folder_of_something_else_is_left_alone(url: str, tmp_path: Path) -> None:
    begun(url, tmp_path / "run").close()
    other = tmp_path / "else" / "run"
    Run.create("tune", path=other).close()
    before = (other / "run.json").read_bytes()
    with pytest.raises(RunError, match="holds something else"):
        Store(url).take_up(other)
    assert (other / "run.json").read_bytes() == before
    elsewhere = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(RunError, match="is kept in"):
        Store(elsewhere).take_up(tmp_path / "run")


def test_a_second_writer_that_slipped_in_ends_the_first(url: str, tmp_path: Path) -> None:
    """Whatever became of the hold: the number of a record is used once."""
    with begun(url, tmp_path / "run") as run:
        with Database(url).write("from outside") as session:
            session.execute(
                "INSERT INTO negawatt_records (run, number, kind, record) VALUES ('run', 0, 'note', '{}')"
            )
        with pytest.raises(RunError, match="another process writes to the run"):
            run.append("trial", {"number": 0})
        assert not list(run.records()), "the folder does not have what the database has not"


def test_a_server_started_anew_is_waited_for_and_its_lock_taken_again(tmp_path: Path) -> None:
    with running() as server, begun(server.url, tmp_path / "run") as run:
        run.append("trial", {"number": 0})
        server.stop()
        starting = threading.Timer(1.0, server.start)
        starting.start()
        run.append("trial", {"number": 1})
        starting.join()
        assert rows(server.url, "SELECT number FROM negawatt_records") == [(0,), (1,)]
        with pytest.raises(Held):
            Database(server.url).hold("run run")


def test_a_server_that_stays_away_is_a_sentence(
    tmp_path: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="runs cannot be kept: postgresql://127") as refused:
        Store("postgresql://tester:correct-horse@127.0.0.1:1/nothing")
    assert "correct-horse" not in str(refused.value)
    with emptied(postgres_server.url) as url:
        run = begun(url, tmp_path / "run")
        monkeypatch.setattr(stores, "PATIENCE_S", 0.1)
        name = url.rpartition("/")[2]
        with Database(postgres_server.url).write("closing") as session:
            session.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ?", (name,)
            )
        with pytest.raises(RunError, match="what it has is safe") as refused:
            run.append("trial", {"number": 0})
        assert "correct-horse" not in str(refused.value)
        run.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:sesame@open@host/db",
        "postgresql://u:sesame/open@host/db",
        "postgresql://u:sesame?open@host/db",
        "postgresql://u@host/db?password=sesame&bad%zz=1",
        "postgresql://u:sesame@host:port/db?nonsense=1",
        "mysql://u:sesame@host/db",
    ],
)
def test_no_error_tells_the_password(url: str) -> None:
    with pytest.raises(NegawattError) as refused:
        Store(url)
    assert isinstance(refused.value, UsageError)
    seen: BaseException | None = refused.value
    assert seen is not None
    assert "sesame" not in str(seen)


def test_a_url_is_shown_without_its_secrets() -> None:
    typed = "--store=postgresql://ann:se@same@db.example:5432/runs?password=open&sslmode=require"
    assert without_secrets(typed) == "--store=postgresql://db.example:5432/runs"
    assert without_secrets("postgres:///runs") == "postgres:///runs"
    assert without_secrets("my-model@2") == "my-model@2"
