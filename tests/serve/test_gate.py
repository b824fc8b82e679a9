"""The gate: keys, rates, budgets and the ledger behind the seam that the server asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.carbon import Factor
from negawatt.database import Database
from negawatt.energy import Energy
from negawatt.serve import Estimate, Gate, Receipt, Refused
from negawatt.serve.account import Account
from negawatt.serve.budget import Budget, Period, Step
from negawatt.serve.clerk import RETRY_S
from negawatt.serve.gate import KeyGate
from negawatt.serve.keys import Key, Keys
from negawatt.serve.ledger import ReceiptLedger
from negawatt.serve.rates import Rates, TokenBucket

SECRET = bytes(range(32))


class Bench:
    """A gate with its parts, on a database and clocks of the test."""

    def __init__(self, database: Database, factor: Factor | None = None) -> None:
        self.now_s = 1_000_000.0
        self.database = database
        self.keys = Keys(database, SECRET)
        self.ledger = ReceiptLedger(database, SECRET)
        self.account = Account(database, self.ledger, lambda: self.now_s)
        self.gate = KeyGate(
            self.keys,
            self.account,
            rates=Rates(lambda: self.now_s),
            intensity=lambda: factor,
            clock=lambda: self.now_s,
        )
        self.key, text = self.keys.create(
            "k", team="t", priority=2, requests_per_minute=5.0, tokens_per_minute=1000.0
        )
        self.header = f"Bearer {text}"

    def close(self) -> None:
        self.gate.close()

    def written(self) -> list[str]:
        """Ids in the ledger, once the clerk has nothing left to do."""
        assert self.gate.clerk.flush(10.0)
        return [receipt.id for receipt in self.ledger.receipts()]

    def receipt(self, number: int, tokens: int = 20, joules: float = 4.0) -> Receipt:
        return Receipt(
            *(f"r{number}", self.key.id, "t", "small", self.now_s, "completed", 10, 0, tokens - 10),
            prefill=Energy.zero(),
            decode=Energy.estimated(joules, joules, joules, "CPU time"),
            idle=Energy.zero(),
            boundary="chip",
        )


@pytest.fixture
def bench(database: Database) -> Iterator[Bench]:
    with closing(Bench(database)) as made:
        yield made


def estimate(output_tokens: int = 90, joules: float = 10.0) -> Estimate:
    return Estimate("small", 10, output_tokens, Energy.estimated(joules, joules / 2, joules, "cost model"))


def test_the_gate_is_what_the_server_asks_for(bench: Bench) -> None:
    gate: Gate = bench.gate
    caller = gate.caller(bench.header)
    assert (caller.key_id, caller.team, caller.priority) == (bench.key.id, "t", 2)
    with pytest.raises(Refused) as caught:
        gate.caller("Bearer nw-nobody")
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    held = gate.reserve(caller, estimate())
    assert (held.model, held.output_tokens) == ("small", 90)
    held.settle(bench.receipt(1))
    gate.charge(bench.receipt(2))
    assert bench.written() == ["r1", "r2"]


def test_without_keys_everybody_is_one_caller_whose_receipts_and_budget_are_kept(bench: Bench) -> None:
    bench.account.put(Budget("server", Period("day"), joules=15.0))
    with closing(KeyGate(None, bench.account, clock=lambda: bench.now_s)) as gate:
        caller = gate.caller("Bearer whatever")
        assert (caller.key_id, caller.team) == ("", "")
        held = gate.reserve(caller, estimate())
        with pytest.raises(Refused):
            gate.reserve(caller, estimate())
        held.settle(replace(bench.receipt(1), key_id="", team=""))
        assert gate.clerk.flush(10.0)
        (kept,) = bench.ledger.receipts()
        assert (kept.id, kept.key_id) == ("r1", "")
        gate.reserve(caller, estimate()).release()


def test_rates_are_refused_with_when_to_come_again_and_corrected_by_what_was_needed(bench: Bench) -> None:
    caller = bench.gate.caller(bench.header)
    held = bench.gate.reserve(caller, estimate(output_tokens=890))  # 900 of 1000 tokens
    with pytest.raises(Refused) as caught:
        bench.gate.reserve(caller, estimate(output_tokens=190))
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.retry_after_s == pytest.approx(6.0)
    held.settle(bench.receipt(1, tokens=100))  # 800 come back
    for _ in range(4):
        bench.gate.reserve(caller, estimate(output_tokens=90)).release()
    with pytest.raises(Refused, match="requests a minute") as caught:
        bench.gate.reserve(caller, estimate())
    assert caught.value.retry_after_s == pytest.approx(12.0)
    bench.now_s += 12.0
    bench.gate.reserve(caller, estimate())
    with pytest.raises(Refused) as caught:
        bench.gate.reserve(caller, estimate(output_tokens=5000))
    assert caught.value.status == 400


def test_budgets_refuse_and_give_the_rate_back(bench: Bench) -> None:
    bench.account.put(Budget("team:t", Period("day"), joules=15.0))
    caller = bench.gate.caller(bench.header)
    held = bench.gate.reserve(caller, estimate())
    for _ in range(10):  # twice what its rate allows: what was refused did not count
        with pytest.raises(Refused) as caught:
            bench.gate.reserve(caller, estimate())
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (
            429,
            "budget_busy",
            1.0,
        )
    held.settle(bench.receipt(1, joules=8.0))  # not written yet, and not in the way for that
    with pytest.raises(Refused, match="too few joules") as caught:
        bench.gate.reserve(caller, estimate())
    assert caught.value.code == "budget_exhausted"
    assert caught.value.retry_after_s == Period("day").renewed_s(bench.now_s) - bench.now_s


def test_steps_reach_the_server_as_another_model_and_fewer_tokens(bench: Bench) -> None:
    steps = tuple(map(Step.parse, ("0.5=shorten:30", "0.5=smaller:tiny", "0.9=defer")))
    bench.account.put(Budget("team:t", Period("day"), joules=100.0, steps=steps))
    caller = bench.gate.caller(bench.header)
    bench.gate.charge(bench.receipt(1, joules=60.0))
    assert bench.written()
    held = bench.gate.reserve(caller, estimate())
    assert (held.model, held.output_tokens) == ("tiny", 30)
    held.release()
    bench.gate.charge(bench.receipt(2, joules=31.0))
    assert bench.written()
    with pytest.raises(Refused, match="batches") as caught:
        bench.gate.reserve(caller, estimate())
    assert caught.value.code == "budget_defer"
    patient = replace(bench.gate.known(caller.key_id), deferred=True)
    assert bench.gate.reserve(patient, estimate()).output_tokens == 30
    bench.keys.revoke(caller.key_id)
    with pytest.raises(Refused, match="no longer"):
        bench.gate.known(caller.key_id)


def test_a_budget_of_grams_needs_a_grid(database: Database) -> None:
    with closing(Bench(database)) as blind:
        blind.account.put(Budget("team:t", Period("day"), grams=0.001))
        with pytest.raises(Refused) as caught:
            blind.gate.reserve(blind.gate.caller(blind.header), estimate())
        assert caught.value.code == "intensity_unknown"
    with closing(Bench(database, Factor.estimated(400.0, 300.0, 500.0, "gCO2e/kWh", "stated"))) as seeing:
        caller = seeing.gate.caller(seeing.header)
        seeing.gate.reserve(caller, estimate(joules=7.0)).release()  # 7 J at 500 g/kWh are 0.00097 g
        with pytest.raises(Refused, match="too few grams"):
            seeing.gate.reserve(caller, estimate(joules=8.0))


def test_without_a_budget_nothing_is_held_and_everything_is_written_down(bench: Bench) -> None:
    held = bench.gate.reserve(bench.gate.caller(bench.header), estimate(joules=math.pi))
    with bench.database.read() as session:
        assert session.execute("SELECT COUNT(*) FROM reservations") == [(0,)]
    held.settle(bench.receipt(1))
    held.settle(bench.receipt(9))
    held.release()
    assert bench.written() == ["r1"]


def test_receipts_wait_while_the_database_is_away(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "negawatt")
    with bench.database.write("account") as session:
        session.execute("ALTER TABLE receipts RENAME TO away")
    for number in range(3):
        bench.gate.charge(bench.receipt(number))
    assert not bench.gate.clerk.flush(2.5 * RETRY_S)
    assert bench.gate.clerk.waiting == 3
    with bench.database.write("account") as session:
        session.execute("ALTER TABLE away RENAME TO receipts")
    assert bench.written() == ["r0", "r1", "r2"]
    assert caplog.text.count("to be written") == 1, "it was tried again and again, and said once"
    assert "written again" in caplog.text


def test_one_receipt_that_the_database_refuses_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("negawatt.serve.clerk.RETRY_S", 0.01)
    with closing(Bench(Database(str(tmp_path / "serve.db")))) as bench:
        with bench.database.write("account") as session:
            session.execute(
                "CREATE TRIGGER choosy BEFORE INSERT ON receipts WHEN NEW.model = 'poison' "
                "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )
        bench.gate.charge(replace(bench.receipt(1), model="poison"))
        assert not bench.gate.clerk.flush(0.1), "alone it might be the database that is ill"
        for number in range(2, 40):
            bench.gate.charge(bench.receipt(number))
            bench.gate.clerk.flush(0.02)
        assert bench.written() == [f"r{number}" for number in range(2, 40)]
    assert "given up" in caplog.text and "not this one" in caplog.text


def test_a_busy_budget_is_asked_again_when_what_ended_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that asks again at once is not told that its own last request stands in the way."""
    monkeypatch.setattr("negawatt.serve.gate.WRITTEN_S", 20.0)  # a machine may be busy with other things
    bench.account.put(Budget("team:t", Period("day"), joules=100.0))
    caller = replace(bench.gate.caller(bench.header), key_id="no rates")
    for number in range(20):
        bench.gate.reserve(caller, estimate(joules=60.0)).settle(bench.receipt(number, joules=2.0))
    assert len(bench.written()) == 20


def test_a_database_that_is_gone_is_an_error_that_says_nothing_of_it(tmp_path: Path) -> None:
    with closing(Bench(Database(str(tmp_path / "serve.db")))) as bench:
        with bench.database.write("keys") as session:
            session.execute("DROP TABLE keys")
        bench.keys._known.clear()
        with pytest.raises(Refused) as caught:
            bench.gate.caller(bench.header)
    assert caught.value.status == 503
    assert str(tmp_path) not in str(caught.value)


@given(
    st.floats(0.5, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 50)), max_size=40),
)
def test_a_bucket_never_gives_more_than_flowed_in(rate: float, events: list[tuple[float, float]]) -> None:
    bucket, now_s, taken = TokenBucket(rate, 0.0), 0.0, 0.0
    for later_s, amount in events:
        now_s += later_s
        wait_s = bucket.wait_s(amount, now_s)
        if wait_s == 0.0:
            bucket.take(amount, now_s)
            taken += amount
        elif math.isfinite(wait_s):
            assert bucket.wait_s(amount, now_s + wait_s + 1e-6) == 0.0
            now_s += wait_s + 1e-6
    assert taken <= max(rate, 1.0) + rate * now_s / 60 + 1e-6


def test_buckets_of_many_keys_take_bounded_room() -> None:
    rates = Rates()
    for number in range(10_500):
        rates.take(Key(f"{number:012x}", "k", requests_per_minute=1.0), 1)
    assert len(rates._buckets) == 10_000
