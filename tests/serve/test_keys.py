"""Keys: shown once, kept as keyed hashes, revoked within a second; and the database they are in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from negawatt.database import Database, DatabaseError
from negawatt.errors import NegawattError, UsageError
from negawatt.serve.keys import Key, KeyRefused, Keys, server_secret

SECRET = bytes(range(32))
CLI = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"]


def test_a_key_opens_and_nothing_near_it_does(database: Database) -> None:
    keys = Keys(database, SECRET)
    key, text = keys.create("notebook", team="research", priority=3, requests_per_minute=60.0)
    assert keys.check(f"Bearer {text}") == key
    assert keys.check(f"bearer  {text} ") == key
    turned = text[:-1] + ("A" if text[-1] != "A" else "B")
    other = keys.create("other")[1]
    swapped = text[:16] + other[16:]
    for wrong in (None, "", text, f"Basic {text}", f"Bearer {turned}", f"Bearer {swapped}", "Bearer nw-"):
        with pytest.raises(KeyRefused):
            keys.check(wrong)
    with pytest.raises(KeyRefused):
        keys.check("Bearer " + "ü" * 100_000)


def test_keys_are_random_and_stored_as_hashes_that_need_the_secret(database: Database) -> None:
    keys = Keys(database, SECRET)
    texts = [keys.create(f"k{i}")[1] for i in range(50)]
    assert len({text[-43:] for text in texts}) == 50
    with database.read() as session:
        stored = json.dumps(session.execute("SELECT * FROM keys"))
    assert not any(text[-43:] in stored for text in texts)
    with pytest.raises(KeyRefused):
        Keys(database, bytes(32)).check(f"Bearer {texts[0]}")


def test_a_revoked_key_is_refused_by_another_server_within_a_second(database: Database) -> None:
    keys, server = Keys(database, SECRET), Keys(Database(database.url), SECRET)
    key, text = keys.create("gone soon")
    server.check(f"Bearer {text}")
    assert keys.revoke(key.id).revoked_s is not None
    with pytest.raises(KeyRefused):
        keys.check(f"Bearer {text}")
    revoked = time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            server.check(f"Bearer {text}")
        except KeyRefused:
            break
        assert asked - revoked < 1.0, "the other server still takes the key after a second"
        time.sleep(0.02)
    with pytest.raises(UsageError, match="no key"):
        keys.revoke("000000000000")


def test_a_key_expires_by_the_clock(database: Database) -> None:
    now = [1000.0]
    keys = Keys(database, SECRET, clock=lambda: now[0])
    _, text = keys.create("visitor", expires_s=1060.0)
    keys.check(f"Bearer {text}")
    now[0] = 1060.0
    with pytest.raises(KeyRefused):
        keys.check(f"Bearer {text}")


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "a\nb"}, {"name": "k", "requests_per_minute": 0.0}, {"name": "x" * 64}]
)
def test_a_key_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Key("0" * 12, **wrong)  # type: ignore[arg-type]


def test_the_secret_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    place = tmp_path / "serve" / "secret"
    found: list[bytes] = []
    racers = [threading.Thread(target=lambda: found.append(server_secret(place))) for _ in range(16)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(found) == 16 and len(set(found)) == 1
    assert [p.name for p in place.parent.iterdir()] == ["secret"]
    assert place.stat().st_mode & 0o777 == 0o600
    place.chmod(0o640)
    with pytest.raises(NegawattError, match="chmod 600"):
        server_secret(place)
    place.chmod(0o600)
    place.write_text("abc")
    with pytest.raises(NegawattError, match="64 hexadecimal"):
        server_secret(place)


def test_the_database_of_keys_is_its_owners_alone(tmp_path: Path) -> None:
    Database(str(tmp_path / "sub" / "serve.db")).close()
    assert (tmp_path / "sub" / "serve.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("url", ["mysql://user:secret-word@host/name", "sqlite://file.db"])
def test_a_url_of_another_kind_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Database(url)
    assert "secret-word" not in str(caught.value)


def test_a_database_that_is_none_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and long enough to be read as one " * 40)
    with pytest.raises(DatabaseError, match=r"text\.db"):
        Keys(Database(str(tmp_path / "text.db")), SECRET)
    with pytest.raises(DatabaseError) as caught:
        Database("postgresql://me:secret-word@127.0.0.1:1/nothing")
    assert "secret-word" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_transaction_happens_whole_or_not_at_all(database: Database) -> None:
    database.create(["CREATE TABLE IF NOT EXISTS t (n BIGINT)"])

    def half() -> None:
        with database.write("t") as session:
            session.execute("INSERT INTO t VALUES (?)", (1,))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    with database.read() as session:
        assert session.execute("SELECT COUNT(*) FROM t") == [(0,)]


def test_writers_of_many_threads_lose_nothing(database: Database) -> None:
    database.create(["CREATE TABLE IF NOT EXISTS t (n BIGINT)"])
    with database.write("t") as session:
        session.execute("INSERT INTO t VALUES (0)")

    def add() -> None:
        for _ in range(10):
            with database.write("t") as session:
                [(n,)] = session.execute("SELECT n FROM t")
                session.execute("UPDATE t SET n = ?", (n + 1,))

    threads = [threading.Thread(target=add) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.execute("SELECT n FROM t") == [(200,)]


def test_the_command_line_makes_lists_and_revokes(fresh_home: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, "keys", *arguments], capture_output=True, text=True, check=True, env=os.environ
        )

    made = call("create", "notebook", "--team", "research", "--expires", "30d")
    text = made.stdout.strip()
    assert re.fullmatch(r"nw-[0-9a-f]{12}-[\w-]{43}", text)
    listed = call("list", "--json").stdout
    [entry] = json.loads(listed)
    assert entry["team"] == "research" and text[-43:] not in listed
    keys = Keys(Database(str(fresh_home / "serve" / "serve.db")), server_secret())
    assert keys.check(f"Bearer {text}").id == entry["id"]
    assert "revoked" in call("revoke", entry["id"]).stdout
    assert "revoked" in call("list").stdout
