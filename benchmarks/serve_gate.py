"""What do keys, budgets and the ledger cost a request, on SQLite and on PostgreSQL?

    python benchmarks/serve_gate.py [--postgres postgresql://user:password@host/name]

A request as the server sees it, from its key to its receipt: look the key up, hold what it may cost, have
charged what it did cost. That is what it waits for; charges are written by a thread, and the last column is
how many whole requests a second that keeps up with. Beside it, the gate that lets everybody in. Then 200
clients in threads race for a budget that fits a part of their requests.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

from negawatt.database import Database
from negawatt.energy import Energy
from negawatt.serve import Estimate, Gate, OpenGate, Receipt, Refused
from negawatt.serve.account import Account
from negawatt.serve.budget import Budget, Period
from negawatt.serve.gate import KeyGate
from negawatt.serve.keys import Keys
from negawatt.serve.ledger import ReceiptLedger

REQUESTS = 2000
CLIENTS = 200
SECRET = bytes(range(32))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgres", help="An empty database that may be written to.")
    chosen = parser.parse_args()
    print(f"| gate | p50 ms | p99 ms | requests a second |\n|{'---|' * 4}")
    print(f"| open | {timed(OpenGate(), None)} |")
    with tempfile.TemporaryDirectory() as folder:
        for title, url in (("SQLite", str(Path(folder) / "serve.db")), ("PostgreSQL", chosen.postgres)):
            if url is None:
                continue
            database = Database(url)
            keys = Keys(database, SECRET)
            _, text = keys.create("bench", team="bench")
            account = Account(database, ReceiptLedger(database, SECRET))
            gate = KeyGate(keys, account)
            print(f"| {title}, no budget | {timed(gate, text)} |", flush=True)
            account.put(Budget("team:bench", Period("day"), joules=1e12))
            account.put(Budget("server", Period("month"), tokens=1e12))
            print(f"| {title}, two budgets | {timed(gate, text)} |", flush=True)
            race(gate, text, account, title)
            gate.close()


def receipt(key_id: str, joules: float) -> Receipt:
    part = Energy.estimated(joules / 2, joules / 4, joules, "CPU time")
    return Receipt(
        *(f"r{random.getrandbits(80):x}", key_id, "bench", "small", time.time(), "completed", 50, 0, 20),
        prefill=part,
        decode=part,
        idle=Energy.zero(),
        boundary="chip",
    )


def one(gate: Gate, text: str | None) -> None:
    caller = gate.caller(f"Bearer {text}")
    held = gate.reserve(caller, Estimate("small", 50, 64, Energy.estimated(10.0, 5.0, 20.0, "cost model")))
    held.settle(receipt(caller.key_id, 8.0))


def timed(gate: Gate, text: str | None) -> str:
    taken, start = [], time.perf_counter()
    for _ in range(REQUESTS):
        begun = time.perf_counter()
        one(gate, text)
        taken.append(time.perf_counter() - begun)
    if isinstance(gate, KeyGate):
        assert gate.clerk.flush(60.0)
    whole = time.perf_counter() - start
    taken.sort()
    p50, p99 = taken[REQUESTS // 2], taken[REQUESTS * 99 // 100]
    return f"{p50 * 1e3:.3f} | {p99 * 1e3:.3f} | {REQUESTS / whole:,.0f}"


def race(gate: KeyGate, text: str, account: Account, title: str) -> None:
    [use] = account.uses(["team:bench"])
    limit = use.spent.joules + CLIENTS / 2 * 8.0
    account.put(Budget("team:bench", Period("day"), joules=limit))
    refused, together = [], threading.Barrier(CLIENTS)

    def client() -> None:
        together.wait()
        try:
            one(gate, text)
        except Refused:
            refused.append(1)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.clerk.flush(60.0)
    [use] = account.uses(["team:bench"])
    over_j = max(0.0, use.spent.joules - limit)
    print(
        f"{title}: {CLIENTS} clients raced for {CLIENTS // 2 * 8} J in {time.perf_counter() - begun:.2f} s; "
        f"{len(refused)} refused, overspent by {over_j:.1f} J, {use.held.joules:.1f} J still held"
    )


if __name__ == "__main__":
    main()
