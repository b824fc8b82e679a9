"""What a server does when clients leave, workers die, too many ask, and it is restarted under load.

    python benchmarks/serve_faults.py aborts --number 10000
    python benchmarks/serve_faults.py kills --number 5
    python benchmarks/serve_faults.py overload --seconds 180
    python benchmarks/serve_faults.py restarts --number 50

Each is a server of the real model in processes of its own with everything on: budgets, ledger, metrics. What
is left behind is counted by the server's parts themselves (``/metrics``) and by the kernel (``/proc``).
Prompts carry a number that their likeliest answer repeats, so an answer tells whose it is; what it is was
asked before, alone. The tests run the same with smaller numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from live_server import (
    MODEL,
    PATH,
    Answer,
    Books,
    Live,
    ask,
    ask_and_leave,
    body_of,
    code_prompt,
    metrics,
    percentile,
    ready,
)
from negawatt.serve.budget import Budget, Period

TOKENS = 12
"""Of an answer that repeats a code."""
HELD = ('negawatt_sequences{by="jobs"}', 'negawatt_sequences{by="books"}', 'negawatt_sequences{by="cache"}',
        'negawatt_kv_tokens{what="promised"}', "negawatt_receipts_waiting")  # fmt: skip
"""Series that are 0 in an idle server."""


# -- clients that leave -----------------------------------------------------------------------------------


async def aborts(live: Live, number: int, at_once: int = 40, longest_s: float = 0.6) -> None:
    """So many clients ask and leave at random moments, half of them streaming."""
    draw, left = random.Random(11), iter(range(number))

    async def client() -> None:
        for n in left:
            body = body_of(
                f"Story {n}: it began", draw.randrange(1, 200), stream=n % 2 == 0, n=1 + n % 5 // 4
            )
            await ask_and_leave(live.address, body, draw, longest_s)

    await asyncio.gather(*(client() for _ in range(at_once)))


async def idle(live: Live, most_s: float = 60.0) -> dict[str, float]:
    """The server's own count once nothing is held any more, or when it does not come to that in time."""
    end = time.monotonic() + most_s
    while True:
        found = await metrics(live.address)
        if not any(found[name] for name in HELD) or time.monotonic() > end:
            return found
        await asyncio.sleep(0.05)


async def leftovers(live: Live, books: Books, number: int) -> dict[str, float]:
    """What so many clients leave behind that leave: differences to before, and what should be 0."""
    await aborts(live, 80)  # pools of connections and threads come to their size
    before, descriptors = await idle(live), live.descriptors()
    await aborts(live, number)
    found = await idle(live)
    await asyncio.sleep(0.2)
    [use] = books.account.uses(["server"])
    return {
        **{name: found[name] for name in HELD},
        "tasks": (await idle(live))["negawatt_tasks"] - before["negawatt_tasks"],
        "descriptors": live.descriptors() - descriptors,
        "reservations": use.held.requests,
        "faults of the ledger": len(books.ledger.verify().faults),
    }


async def cannot_be_had(live: Live, batch: int, context: int) -> list[Answer]:
    """What fails when all of the cache is wanted: as many sequences as fit, each as long as may be."""
    prompts = [[100 + 7 * n + k % 50 for k in range(context - 4)] for n in range(batch)]
    bodies = [{**body_of("", 4), "prompt": prompt} for prompt in prompts]
    answers = await asyncio.gather(*(ask(live.address, body) for body in bodies))
    return [answer for answer in answers if answer.status != 200 or not answer.whole]


# -- a worker that dies -----------------------------------------------------------------------------------


@dataclass
class Killed:
    """What clients saw of a worker's death.

    Attributes:
        answers: of those that were under way.
        again_s: seconds until the server answered the next one.
    """

    answers: list[Answer]
    again_s: float


async def kill(live: Live, streams: int, number: int = signal.SIGKILL) -> Killed:
    """Send a signal to the worker while it writes; half of the clients stream."""
    bodies = [body_of(f"Tale {n}: in the", 400, stream=n % 2 == 0) for n in range(streams)]
    asked = [asyncio.create_task(ask(live.address, body)) for body in bodies]
    while (await metrics(live.address))['negawatt_sequences{by="cache"}'] < streams:
        await asyncio.sleep(0.02)
    [worker] = live.workers()
    os.kill(worker, number)
    begun = time.monotonic()
    while number == signal.SIGSTOP and await ready(live.address):
        await asyncio.sleep(0.05)
    answers = await asyncio.gather(*asked)
    while (await ask(live.address, body_of("Again", 2))).status != 200:
        await asyncio.sleep(0.05)
    return Killed(answers, time.monotonic() - begun)


# -- too many ---------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What a load came to.

    Attributes:
        answers: every one.
        wrong: numbers whose answer was not theirs.
        resident: bytes of all the server's processes, by seconds.
        over_s: how long it lasted.
    """

    answers: list[Answer] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)
    over_s: float = 0.0

    def of(self, status: int) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == status]

    def first_s(self, share: float) -> float:
        return percentile([answer.first_s for answer in self.of(200)], share)

    @property
    def growth(self) -> float:
        """Of the memory, from the second tenth of the load to the last."""
        early, late = (
            [size for at, size in self.resident if low * self.over_s <= at <= high * self.over_s]
            for low, high in ((0.1, 0.2), (0.9, 1.0))
        )
        return percentile(late, 0.5) / percentile(early, 0.5) - 1


async def known_answers(live: Live, number: int) -> dict[int, str]:
    """What the model says to each code, asked one after the other."""
    codes = random.Random(5).sample(range(1000, 10_000), number)
    found = {code: (await ask(live.address, body_of(code_prompt(code), TOKENS))).text for code in codes}
    assert all(str(code) in text for code, text in found.items()), "the model does not repeat codes"
    return found


async def clients(live: Live, known: dict[int, str], at_once: int, seconds: float) -> Load:
    """So many clients, each asking again as soon as it has its answer."""
    load, draw, begun = Load(), random.Random(at_once), time.monotonic()

    async def client() -> None:
        while time.monotonic() - begun < seconds:
            await one(live, known, draw, load)

    await asyncio.gather(*(client() for _ in range(at_once)))
    load.over_s = time.monotonic() - begun
    return load


async def arrivals(live: Live, known: dict[int, str], a_second: float, seconds: float) -> Load:
    """Clients that come at random, so many a second in the mean, whatever becomes of the others."""
    load, draw, begun = Load(), random.Random(3), time.monotonic()
    running: set[asyncio.Task[None]] = set()
    at = looked = 0.0
    while (now := time.monotonic() - begun) < seconds:
        if now > looked:
            looked = now + 1.0
            load.resident.append((now, live.resident_bytes()))
        while at <= now:
            at += draw.expovariate(a_second)
            task = asyncio.create_task(one(live, known, draw, load))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(max(0.0, min(at, looked) - (time.monotonic() - begun)))
    await asyncio.gather(*running)
    load.over_s = seconds
    return load


async def one(live: Live, known: dict[int, str], draw: random.Random, load: Load) -> None:
    """One streamed request, and whether its answer is its own."""
    code = draw.choice(list(known))
    answer = await ask(live.address, body_of(code_prompt(code), TOKENS, stream=True))
    load.answers.append(answer)
    if answer.status == 200 and answer.text != known[code]:
        load.wrong.append(code)


# -- restarts ---------------------------------------------------------------------------------------------


@dataclass
class Restarted:
    """What clients saw of restarts.

    Attributes:
        answered: requests.
        failed: what became of the others.
        wrong: answers that were not their own.
        codes: exit codes of the servers that were replaced.
    """

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    codes: list[int] = field(default_factory=list)


async def restart(folder: Path, options: tuple[str, ...], number: int, streams: int = 4) -> Restarted:
    """Replace a server so often while clients ask over connections that they keep."""
    told, done = Restarted(), asyncio.Event()
    live = await asyncio.to_thread(Live, folder, *options)
    known = await known_answers(live, 20)
    address = live.address

    async def client(own: int) -> None:
        draw = random.Random(own)
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            while not done.is_set():
                code = draw.choice(list(known))
                try:
                    answer = await http.post(PATH, json=body_of(code_prompt(code), TOKENS))
                    text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else None
                except httpx.HTTPError as exc:
                    told.failed.append(type(exc).__name__)
                    continue
                if text is None:
                    told.failed.append(f"{answer.status_code} {answer.text[:100]}")
                    continue
                told.answered += 1
                told.wrong += text != known[code]
                await asyncio.sleep(0.3 * draw.random())

    asking = [asyncio.create_task(client(n)) for n in range(streams)]
    try:
        for _ in range(number):
            successor = await asyncio.to_thread(Live, folder, *options)
            told.codes.append(await asyncio.to_thread(live.wait))
            live.close()
            live = successor
        await asyncio.sleep(0.5)
    finally:
        done.set()
        await asyncio.gather(*asking)
        live.close()
    return told


# -- the program ------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["aborts", "kills", "overload", "restarts"])
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    chosen = (
        *(MODEL, "--port", "0", "--batch", str(options.batch), "--threads", str(options.threads)),
        *("--max-context", "512"),
    )
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(globals()[f"show_{options.what}"](Path(folder), chosen, options))


async def show_aborts(folder: Path, chosen: tuple[str, ...], options: argparse.Namespace) -> None:
    books = Books(folder)
    books.account.put(Budget("server", Period("day"), requests=1e9))
    with Live(folder, *chosen) as live:
        begun = time.monotonic()
        for name, count in (await leftovers(live, books, options.number)).items():
            print(f"{name:<40}{count:>8.0f}")
        print(f"all of the cache can be had: {not await cannot_be_had(live, options.batch, 512)}")
        outcomes = Counter(receipt.outcome for receipt in books.ledger.receipts())
        print(
            f"{options.number} clients left in {time.monotonic() - begun:.0f} s; receipts: {dict(outcomes)}"
        )
    books.close()


async def show_kills(folder: Path, chosen: tuple[str, ...], options: argparse.Namespace) -> None:
    books = Books(folder)
    with Live(folder, *chosen) as live:
        for _ in range(options.number):
            killed = await kill(live, options.batch)
            clean = sum(a.error is not None for a in killed.answers)
            print(f"{clean} of {len(killed.answers)} got an error in OpenAI's form; answered again after "
                  f"{killed.again_s:.2f} s", flush=True)  # fmt: skip
        await idle(live)
    lost = [receipt for receipt in books.ledger.receipts() if receipt.outcome == "lost"]
    print(f"faults of the ledger: {len(books.ledger.verify().faults)}; {sum(r.cpu_s for r in lost):.2f} CPU "
          f"seconds named as lost in {len(lost)} receipts")  # fmt: skip
    books.close()


async def show_overload(folder: Path, chosen: tuple[str, ...], options: argparse.Namespace) -> None:
    with Live(folder, *chosen, "--max-wait", "0") as live:
        known = await known_answers(live, 100)
        alone = await clients(live, known, 1, 10.0)
        full = await clients(live, known, options.batch, 15.0)
        capacity = len(full.of(200)) / full.over_s
        load = await arrivals(live, known, 10 * capacity, options.seconds)
        end = await idle(live)
    refused = load.of(429)
    others = len(load.answers) - len(refused) - len(load.of(200))
    late = sum(a.whole_s > 0.1 for a in refused)
    print(f"capacity {capacity:.1f} requests a second, {options.batch} at once; offered "
          f"{len(load.answers) / load.over_s:.1f} for {load.over_s:.0f} s")  # fmt: skip
    cut = sum(not a.whole for a in load.of(200))
    print(f"answered {len(load.of(200))}, of them wrong {len(load.wrong)}, cut off {cut}; refused "
          f"{len(refused)}; anything else {others}")  # fmt: skip
    waits = [1000 * percentile([a.whole_s for a in refused], share) for share in (0.5, 0.99, 1.0)]
    mute = sum("retry-after" not in a.headers for a in refused)
    print(f"refused within ms: p50 {waits[0]:.1f}, p99 {waits[1]:.1f}, longest {waits[2]:.1f}; {late} took "
          f"over 100; without retry-after {mute}")  # fmt: skip
    print(f"{'TTFT ms':<28}{'p50':>8}{'p99':>8}")
    for name, found in (("one client", alone), ("as many as run at once", full), ("10 times as many", load)):
        print(f"{name:<28}{1000 * found.first_s(0.5):>8.1f}{1000 * found.first_s(0.99):>8.1f}")
    ratios = [load.first_s(0.99) / found.first_s(0.99) for found in (alone, full)]
    print(f"p99 over that of one client {ratios[0]:.2f}, of as many as run at once {ratios[1]:.2f}; memory "
          f"grew by {100 * load.growth:.1f} %; held afterwards {sum(map(end.get, HELD)):.0f}")  # fmt: skip


async def show_restarts(folder: Path, chosen: tuple[str, ...], options: argparse.Namespace) -> None:
    books = Books(folder)
    books.account.put(Budget("server", Period("day"), requests=1e9))
    begun = time.monotonic()
    told = await restart(folder, (*chosen, "--handover", str(folder / "handover")), options.number)
    receipts = Counter(receipt.outcome for receipt in books.ledger.receipts())
    [use] = books.account.uses(["server"])
    print(f"{options.number} restarts in {time.monotonic() - begun:.0f} s: {told.answered} answered, "
          f"{told.wrong} of them wrong, {len(told.failed)} failed {told.failed[:3]}; exit codes "
          f"{dict(Counter(told.codes))}")  # fmt: skip
    print(f"receipts {dict(receipts)}; charged {use.spent.requests:.0f}, held {use.held.requests:.0f}; "
          f"faults of the ledger {len(books.ledger.verify().faults)}")  # fmt: skip
    books.close()


if __name__ == "__main__":
    main()
