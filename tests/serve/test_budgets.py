"""Budgets hold under races, crashes and every way a request can end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.database import Database, DatabaseError
from negawatt.energy import Energy
from negawatt.errors import UsageError
from negawatt.serve import Receipt
from negawatt.serve.account import LEASE_S, Account, Hold
from negawatt.serve.budget import Budget, Decision, Period, Price, Spending, Step, Use, decide
from negawatt.serve.ledger import ReceiptLedger

SECRET = bytes(range(32))
CLI = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"]
NOW_S = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC).timestamp()


def receipt(number: int | str, joules: float = 10.0, **changes: object) -> Receipt:
    half = Energy.estimated(joules / 2, joules / 4, joules, "CPU time")
    made = Receipt(
        *(f"r{number}", "k", "t", "small", NOW_S, "completed", 5, 0, 5),
        prefill=half,
        decode=half,
        idle=Energy.zero(),
        boundary="chip",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def costing(joules: float, tokens: float = 10.0) -> Price:
    """A request that costs the same whatever model answers, and nothing a token."""
    return lambda model, output_tokens: Spending(joules, 0.0, tokens, 1.0)


def account(database: Database, clock: Callable[[], float] = lambda: NOW_S) -> Account:
    return Account(database, ReceiptLedger(database, SECRET), clock)


def hold(kept: Account, joules: float, **more: bool) -> tuple[Decision, Hold | None]:
    return kept.hold("k", "t", "small", 16, costing(joules), **more)


def spent(kept: Account) -> Spending:
    [use] = kept.uses()
    return use.spent


# -- periods and steps ---------------------------------------------------------------------------------


def test_periods_begin_and_are_renewed_by_utc() -> None:
    def at(*when: int) -> float:
        return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[misc]

    assert Period("day").start_s(NOW_S) == at(2026, 3, 14)
    assert Period("day").renewed_s(NOW_S) == at(2026, 3, 15)
    assert Period("month").start_s(NOW_S) == at(2026, 3, 1)
    assert Period("month").renewed_s(at(2026, 12, 31, 23)) == at(2027, 1, 1)
    assert Period("rolling:24h").start_s(NOW_S) == at(2026, 3, 13, 15)
    assert Period("rolling:7d").start_s(NOW_S) == at(2026, 3, 7, 15)


@pytest.mark.parametrize("text", ["", "week", "rolling", "rolling:0h", "rolling:32d", "rolling:5m"])
def test_other_periods_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="period"):
        Period(text)


@pytest.mark.parametrize(
    "text", ["", "0.8", "shorten:3", "0.8=shorten", "0.8=shorten:x", "2=refuse", "0.5=smaller", "0.5=defer:3"]
)
def test_steps_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Step.parse(text)


@pytest.mark.parametrize("text", ["0.8=shorten:64", "0.9=smaller:tiny-model", "0.95=defer", "1=refuse"])
def test_steps_are_written_as_they_are_read(text: str) -> None:
    assert str(Step.parse(text)) == text


def use(limit: float, used: float, *steps: str) -> Use:
    budget = Budget("server", Period("day"), joules=limit, steps=tuple(map(Step.parse, steps)))
    return Use(budget, Spending(joules=used), Spending())


def a_joule_a_token(model: str, output_tokens: int) -> Spending:
    return Spending(output_tokens * (0.1 if model == "tiny" else 1.0), 0.0, output_tokens, 1.0)


def test_near_the_limit_the_owner_s_steps_are_taken_in_turn() -> None:
    steps = ("0.5=shorten:50", "0.7=smaller:tiny", "0.9=defer", "0.99=refuse")

    def decided(used: float, deferred: bool = False) -> tuple[str, int, str]:
        found = decide([use(1000, used, *steps)], "small", 100, a_joule_a_token, deferred=deferred)
        return found.model, found.output_tokens, found.why

    assert decided(499) == ("small", 100, "")
    assert decided(500) == ("small", 50, "")
    assert decided(700) == ("tiny", 50, "")
    assert decided(900)[2] == "defer"
    assert decided(900, deferred=True) == ("tiny", 50, "")
    assert decided(990, deferred=True)[2] == "refuse"


def test_what_does_not_fit_is_shortened_only_where_the_owner_said_so() -> None:
    plain = decide([use(100, 70)], "small", 100, a_joule_a_token, deferred=False)
    assert (plain.why, plain.busy) == ("joules", False)
    short = decide([use(100, 70, "0.9=shorten:8")], "small", 100, a_joule_a_token, deferred=False)
    assert (short.why, short.output_tokens, short.ask.joules) == ("", 30, 30.0)
    both = decide(
        [use(100, 70, "0.9=shorten:8"), use(100, 80)], "small", 100, a_joule_a_token, deferred=False
    )
    assert both.why == "joules", "the other budget's owner did not"


@given(
    st.lists(
        st.tuples(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 1000), st.booleans(), st.floats(0, 1)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 500),
    st.floats(0, 3),
)
def test_what_is_let_in_fits_every_budget(
    budgets: list[tuple[float, float, float, bool, float]], output_tokens: int, each: float
) -> None:
    uses = []
    for limit, spent_j, held_j, shortens, at in budgets:
        steps = (Step(at, "shorten", tokens=7),) if shortens else ()
        budget = Budget("server", Period("day"), joules=limit, steps=steps)
        uses.append(Use(budget, Spending(joules=spent_j), Spending(joules=held_j)))

    def price(model: str, tokens: int) -> Spending:
        return Spending(joules=5 + each * tokens)

    found = decide(uses, "small", output_tokens, price, deferred=False)
    fits = all(u.used.joules + found.ask.joules <= (u.budget.joules or 0.0) for u in uses)
    assert fits == (found.refusal is None)
    assert 1 <= found.output_tokens <= output_tokens


# -- holding and charging ------------------------------------------------------------------------------


def test_hold_then_settle_charges_what_it_cost_to_key_team_and_server(database: Database) -> None:
    kept = account(database)
    for owner in ("key:k", "team:t", "server", "key:other"):
        kept.put(Budget(owner, Period("day"), joules=100, requests=5))
    _, held = hold(kept, 40.0)
    assert held is not None and held.spending.joules == 40.0
    assert {u.budget.owner: u.held.joules for u in kept.uses()} == {
        **{"key:k": 40.0, "key:other": 0.0, "server": 40.0, "team:t": 40.0}
    }
    kept.settle(held, receipt(1, 12.0))
    kept.settle(held, receipt(1, 12.0))
    for one in kept.uses():
        assert one.held == Spending()
        expected = Spending() if one.budget.owner == "key:other" else Spending(12.0, 0.0, 10.0, 1.0)
        assert one.spent == expected
    assert ReceiptLedger(database, SECRET).head().seq == 1


def test_release_gives_everything_back(database: Database) -> None:
    kept = account(database)
    kept.put(Budget("team:t", Period("month"), joules=50))
    _, held = hold(kept, 50.0)
    refused, nothing = hold(kept, 1.0)
    assert nothing is None and refused.busy
    assert held is not None
    kept.release(held)
    kept.release(held)
    assert hold(kept, 50.0)[1] is not None


def test_energy_that_was_not_measured_is_charged_as_it_was_held(database: Database) -> None:
    kept = account(database)
    kept.put(Budget("key:k", Period("day"), joules=100))
    _, held = hold(kept, 30.0)
    kept.settle(held, receipt(1, decode=Energy.missing("the counter died")))
    assert spent(kept).joules == 30.0


def test_a_cost_that_is_not_known_yet_holds_all_that_is_left(database: Database) -> None:
    kept = account(database)
    kept.put(Budget("key:k", Period("day"), joules=100))
    kept.settle(None, receipt(0, 30.0))
    _, held = hold(kept, math.inf)
    assert held is not None and held.spending.joules == 70.0
    assert hold(kept, math.inf)[1] is None
    kept.settle(held, receipt(1, 5.0))
    assert hold(kept, 65.0)[1] is not None


def test_a_period_that_ends_frees_its_budget(database: Database) -> None:
    now = [NOW_S]
    kept = account(database, lambda: now[0])
    kept.put(Budget("key:k", Period("day"), joules=100))
    kept.put(Budget("key:k", Period("rolling:2h"), joules=60))
    kept.settle(None, receipt(0, 60.0))
    assert hold(kept, 1.0)[0].refusal == Budget("key:k", Period("rolling:2h"), joules=60)
    now[0] += 3600 * 3
    _, held = hold(kept, 40.0)
    assert held is not None
    kept.settle(held, receipt(1, 40.0))
    assert hold(kept, 1.0)[0].why == "joules"
    now[0] = Period("day").renewed_s(now[0])
    assert hold(kept, 1.0)[1] is not None


def test_what_was_spent_before_a_budget_was_set_counts(database: Database) -> None:
    kept = account(database)
    kept.settle(None, receipt(0, 90.0))
    kept.put(Budget("team:t", Period("month"), joules=100))
    assert hold(kept, 20.0)[0].why == "joules"


def test_warm_ups_and_idle_cost_the_server_but_are_no_requests(database: Database) -> None:
    kept = account(database)
    kept.put(Budget("server", Period("day"), joules=100, requests=3))
    kept.settle(None, receipt("warm", 20.0, key_id="", team="", outcome="warm-up"))
    kept.settle(None, receipt("idle", 5.0, key_id="", team="", outcome="idle", input_tokens=0))
    assert spent(kept) == Spending(25.0, 0.0, 0.0, 0.0)


def test_the_dead_hold_nothing(database: Database) -> None:
    now = [NOW_S]
    dead, alive = account(database, lambda: now[0]), account(Database(database.url), lambda: now[0])
    alive.put(Budget("key:k", Period("day"), joules=100))
    assert hold(dead, 100.0)[1] is not None
    assert hold(alive, 1.0)[1] is None
    now[0] += LEASE_S + 0.1  # nobody hears of the first server any more
    assert hold(alive, 100.0)[1] is not None
    now[0] += LEASE_S - 1
    assert hold(dead, 1.0)[1] is None, "the second one is still heard of"


def test_a_server_that_closes_gives_back_what_it_held(database: Database) -> None:
    first = account(database)
    first.put(Budget("key:k", Period("day"), joules=100))
    assert hold(first, 100.0)[1] is not None
    first.close()
    assert hold(account(database), 100.0)[1] is not None


def test_two_hundred_clients_race_one_budget_and_none_of_it_is_overspent(database: Database) -> None:
    """Each holds 10 J and costs 8; the last of them may take what 10 J leave, never more."""
    kept = account(database)
    kept.put(Budget("team:t", Period("day"), joules=400.0))
    let_in: list[int] = []
    together = threading.Barrier(200)

    def client(number: int) -> None:
        together.wait()
        for attempt in range(2):
            _, held = hold(kept, 10.0)
            if held is None:
                continue
            let_in.append(number)
            if number % 10 == 0:
                kept.release(held)  # the client left before anything was spent
            else:
                kept.settle(held, receipt(f"{number}/{attempt}", 8.0))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [use] = kept.uses()
    assert use.held == Spending(), "a hold was left behind"
    assert use.spent.joules <= 400.0
    assert use.spent.joules > 400.0 - 10.0 - 8.0, "the budget was not used up although clients were refused"
    assert use.spent.requests == sum(number % 10 != 0 for number in let_in)
    kept.close()


RACER = """
import sys, os
sys.path.insert(0, {folder!r})
from test_budgets import *
kept = account(Database(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read(1)
for n in range(40):
    _, held = hold(kept, 10.0)
    if held is not None and n % 7 == 2:
        os.kill(os.getpid(), 9) if sys.argv[2] == 'dies' else kept.release(held)
    elif held is not None:
        kept.settle(held, receipt(f"{{os.getpid()}}/{{n}}", 9.0))
"""


def test_processes_race_too_and_one_that_is_killed_leaves_only_its_hold(database: Database) -> None:
    kept = account(database)
    kept.put(Budget("team:t", Period("day"), joules=500.0))
    program = RACER.format(folder=str(Path(__file__).parent))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, database.url, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for way in ("dies", "lives", "lives")
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == b"ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"x")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=60)
    killed = racers[0].returncode == -9  # unless the others were so quick that it was never let in
    [use] = kept.uses()
    assert use.spent.joules <= 500.0
    assert use.spent.joules + use.held.joules > 500.0 - 10.0 - 9.0
    assert use.held.joules == (10.0 if killed else 0.0), "what the killed one held, until it is not heard of"
    assert ReceiptLedger(database, SECRET).verify().faults == ()


def test_a_charge_that_fails_changes_nothing(database: Database) -> None:
    kept = account(database)
    kept.put(Budget("team:t", Period("day"), joules=100.0))
    _, held = hold(kept, 10.0)
    with database.write("account") as session:
        session.execute("ALTER TABLE spending RENAME TO elsewhere")
    with pytest.raises(DatabaseError):
        kept.settle(held, receipt(1))
    with database.write("account") as session:
        session.execute("ALTER TABLE elsewhere RENAME TO spending")
    assert ReceiptLedger(database, SECRET).head().seq == 0
    kept.settle(held, receipt(1))
    assert spent(kept).joules == 10.0


def test_the_command_line_sets_lists_and_removes(fresh_home: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, "budgets", *arguments], capture_output=True, text=True, env=os.environ, check=False
        )

    assert call("set", "team:t", "--per", "month", "--joules", "500", "--step", "0.9=defer").returncode == 0
    [entry] = json.loads(call("list", "--json").stdout)
    assert entry["joules"] == 500 and entry["steps"] == ["0.9=defer"] and entry["spent"]["joules"] == 0
    assert call("set", "team:t").returncode == 2
    assert "there is no key" in call("set", "key:nobody", "--joules", "1").stderr
    assert call("remove", "team:t", "--per", "month").returncode == 0
    assert call("remove", "team:t", "--per", "month").returncode == 2
