"""The ledger: append-only, chained, summed with provenance, exported; on SQLite and on PostgreSQL."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from negawatt.carbon import GRAMS, Amount
from negawatt.database import Database, DatabaseError
from negawatt.energy import Energy, Provenance
from negawatt.errors import UsageError
from negawatt.serve import Receipt
from negawatt.serve.keys import server_secret
from negawatt.serve.ledger import COLUMNS, Head, ReceiptLedger, columns_of
from negawatt.serve.ledger_export import NAMES, export
from negawatt.serve.sums import Filter, sums

SECRET = bytes(range(32))
DAY_S = 86400.0
CLI = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"]


def receipt(number: int, *, missing: bool = False, **changes: object) -> Receipt:
    rng = random.Random(number)
    parts = [Energy.estimated(v := rng.uniform(0.1, 5), v * 0.7, v * 1.6, "CPU time") for _ in range(3)]
    made = Receipt(
        id=f"r{number}",
        key_id=f"k{number % 3}",
        team="red" if number % 2 else "blue",
        model="small",
        created_s=20_000 * DAY_S + number * 3600.0,
        outcome="completed",
        input_tokens=rng.randrange(500),
        cached_tokens=0,
        output_tokens=rng.randrange(100),
        prefill=parts[0],
        decode=Energy.missing("the counter died") if missing else parts[1],
        idle=parts[2],
        boundary="chip",
        cpu_s=rng.uniform(0, 3),
        carbon=Amount.estimated(0.5, 0.25, 1.0, GRAMS, "stated"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def ledger(database: Database) -> ReceiptLedger:
    return ReceiptLedger(database, SECRET)


def fill(ledger: ReceiptLedger, count: int = 12) -> None:
    for number in range(count):
        assert ledger.append(receipt(number))


def test_what_was_appended_is_read_back_once_each(ledger: ReceiptLedger) -> None:
    fill(ledger, 5)
    assert not ledger.append(receipt(3)), "the same receipt twice"
    assert list(ledger.receipts()) == [receipt(number) for number in range(5)]
    window = ledger.receipts(receipt(1).created_s, receipt(3).created_s)
    assert [found.id for found in window] == ["r1", "r2"]
    assert ledger.verify().faults == ()
    assert ledger.head().seq == 5


def test_the_database_itself_refuses_changes(ledger: ReceiptLedger, database: Database) -> None:
    fill(ledger, 2)
    for statement in ("UPDATE receipts SET team = 'green'", "DELETE FROM receipts WHERE seq = 1"):

        def attempt(statement: str = statement) -> None:
            with database.write("account") as session:
                session.execute(statement)

        with pytest.raises(DatabaseError, match="append-only"):
            attempt()
    assert ledger.verify().faults == ()


def unguard(database: Database) -> None:
    """What somebody with all rights on the database can do."""
    with database.write("account") as session:
        if database.is_postgres:
            session.execute("DROP TRIGGER receipts_guard ON receipts")
        else:
            session.execute("DROP TRIGGER receipts_no_update")
            session.execute("DROP TRIGGER receipts_no_delete")


TAMPERINGS = {
    "a column": ["UPDATE receipts SET energy_value = 0.001 WHERE seq = 4"],
    "an entry's text": [
        "UPDATE receipts SET body = REPLACE(body, '\"red\"', '\"blue\"'), team = 'blue' WHERE seq = 4"
    ],
    "deletion": ["DELETE FROM receipts WHERE seq = 4"],
    "deletion and renumbering": [
        "DELETE FROM receipts WHERE seq = 4",
        *(f"UPDATE receipts SET seq = {n - 1} WHERE seq = {n}" for n in range(5, 13)),
        "UPDATE receipts_head SET seq = 11",
    ],
    "the end cut off": ["DELETE FROM receipts WHERE seq > 9"],
    "the end cut off, and the head moved": [
        "DELETE FROM receipts WHERE seq > 9",
        "UPDATE receipts_head SET seq = 9, hash = (SELECT hash FROM receipts WHERE seq = 9)",
    ],
    "two entries exchanged": [
        "UPDATE receipts SET seq = 99 WHERE seq = 4",
        "UPDATE receipts SET seq = 4 WHERE seq = 5",
        "UPDATE receipts SET seq = 5 WHERE seq = 99",
    ],
    "an entry added behind the head": [
        "INSERT INTO receipts SELECT 13, 'forged', "
        + ", ".join([*list(COLUMNS)[1:], "body", "hash"])
        + " FROM receipts WHERE seq = 12",
    ],
    "the head removed": ["DELETE FROM receipts_head"],
}


@pytest.mark.parametrize("statements", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_tampering_is_found(statements: list[str], tmp_path: Path) -> None:
    database = Database(str(tmp_path / "serve.db"))
    ledger = ReceiptLedger(database, SECRET)
    fill(ledger)
    unguard(database)
    with database.write("account") as session:
        for statement in statements:
            session.execute(statement)
    assert ReceiptLedger(database, SECRET).verify().faults


def test_tampering_is_found_in_postgres_too(postgres: str, request: pytest.FixtureRequest) -> None:
    database = Database(postgres)
    ledger = ReceiptLedger(database, SECRET)
    fill(ledger)
    unguard(database)
    with database.write("account") as session:
        session.execute("UPDATE receipts SET output_tokens = output_tokens + 1 WHERE seq = 7")
    assert ledger.verify().faults == ("entry 7: its column output_tokens was changed",)


def test_a_ledger_that_was_begun_anew_is_found_by_a_head_kept_elsewhere(tmp_path: Path) -> None:
    old = ReceiptLedger(Database(str(tmp_path / "old.db")), SECRET)
    fill(old, 6)
    kept = old.head()
    old.append(receipt(6))
    assert old.verify(kept).faults == ()
    new = ReceiptLedger(Database(str(tmp_path / "new.db")), SECRET)
    fill(new, 5)
    assert new.verify().faults == ()
    assert "noted earlier" in new.verify(kept).faults[0]


def test_nobody_without_the_secret_can_go_on_writing(ledger: ReceiptLedger, database: Database) -> None:
    fill(ledger, 2)
    other = ReceiptLedger(database, bytes(32))
    with pytest.raises(DatabaseError, match="secret"):
        other.append(receipt(2))
    assert other.verify().faults


def test_many_writers_make_one_chain(ledger: ReceiptLedger, database: Database) -> None:
    second = ReceiptLedger(Database(database.url), SECRET)

    def write(start: int) -> None:
        for number in range(start, start + 5):
            (ledger if start % 10 else second).append(receipt(number))

    threads = [threading.Thread(target=write, args=(start,)) for start in range(0, 80, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify().to_json()["receipts"] == 80
    assert ledger.verify().faults == ()


def test_sums_are_what_adding_the_receipts_gives(ledger: ReceiptLedger, database: Database) -> None:
    receipts = [receipt(number, missing=number == 4) for number in range(30)]
    for one in receipts:
        ledger.append(one)
    for by in ([], ["team"], ["day", "key"]):
        found = sums(database, by)
        assert sum(line.receipts for line in found) == 30
        for line in found:
            names = {"team": "team", "key": "key_id"}
            members = [
                r
                for r in receipts
                if all(columns_of(r)[names.get(name, name)] == value for name, value in line.group.items())
            ]
            whole = Energy.total(r.energy for r in members)
            assert line.receipts == len(members)
            assert line.output_tokens == sum(r.output_tokens for r in members)
            assert line.energy.provenance is whole.provenance
            for end in ("value_j", "low_j", "high_j"):
                mine, right = getattr(line.energy, end), getattr(whole, end)
                assert (mine is None) == (right is None)
                assert mine is None or math.isclose(mine, right, rel_tol=1e-12)
            assert line.amounts["carbon"] is not None
            assert line.amounts["carbon"].value == pytest.approx(0.5 * len(members))
    [blue] = sums(database, ["team"], Filter(team="blue"))
    assert blue.energy.is_missing
    assert "1 of 15" in blue.energy.reason and "the counter died" in blue.energy.reason


def test_a_sum_over_receipts_without_grams_is_not_taken_for_all(database: Database) -> None:
    ledger = ReceiptLedger(database, SECRET)
    assert sums(database, []) == []
    ledger.append(receipt(0, carbon=None))
    [line] = sums(database, [])
    assert line.amounts["carbon"] is None
    ledger.append(receipt(1))
    [line] = sums(database, [])
    assert line.amounts["carbon"] is not None
    assert line.amounts["carbon"].provenance is Provenance.MISSING
    assert line.amounts["carbon"].low == 0.25
    for number, currency in ((2, "EUR"), (3, "USD")):
        ledger.append(receipt(number, cost=Amount.estimated(1.0, 1.0, 1.0, currency)))
    with pytest.raises(UsageError, match="EUR and USD"):
        sums(database, [])


def test_exports_hold_every_receipt(ledger: ReceiptLedger, tmp_path: Path) -> None:
    receipts = [receipt(0, team="=cmd|' /C calc'!A0"), receipt(1, missing=True)]
    for one in receipts:
        ledger.append(one)
    assert export(ledger, tmp_path / "all.csv") == 2
    with (tmp_path / "all.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert tuple(rows[0]) == NAMES
    assert rows[0]["team"].startswith("'="), "a spreadsheet would run it"
    assert rows[1]["decode_value"] == "" and rows[1]["energy_provenance"] == "missing"
    assert float(rows[0]["energy_high"]) == receipts[0].energy.high_j
    assert export(ledger, tmp_path / "all.parquet") == 2
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert [row["id"] for row in table] == ["r0", "r1"]
    assert table[1]["decode_value"] is None
    assert table[0]["created"].timestamp() == receipts[0].created_s
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        export(ledger, tmp_path / "all.xlsx")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("all")) == [
        "all.csv",
        "all.parquet",
    ]


def test_the_command_line_sums_verifies_and_exports(fresh_home: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*CLI, *arguments], capture_output=True, text=True, env=os.environ, check=False)

    database = Database(str(fresh_home / "serve" / "serve.db"))
    fill(ReceiptLedger(database, server_secret()))
    lines = json.loads(call("receipts", "--by", "team", "--json").stdout)
    assert [line["team"] for line in lines] == ["blue", "red"]
    assert lines[0]["energy"]["provenance"] == "estimated"
    assert "12 requests" in call("receipts").stdout
    head = json.loads(call("ledger", "verify", "--json").stdout)["head"]
    assert call("ledger", "verify", "--expect", head).returncode == 0
    wrong = call("ledger", "verify", "--expect", str(Head(3, "0" * 64)), "--json")
    assert wrong.returncode == 1 and json.loads(wrong.stdout)["intact"] is False
    assert "12 receipts" in call("ledger", "export", str(tmp_path / "out.csv")).stdout
