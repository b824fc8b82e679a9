"""Do receipts and idle time add up to the meter, and does each request pay its own part?

    python benchmarks/serve_conservation.py --minutes 10
    python benchmarks/serve_conservation.py --attribution 6

The first runs a mixed load (streams or not, shared beginnings, several choices, clients that leave and ask
again) and adds up the ledger: its CPU seconds beside those that the kernel counts for the model's process,
its joules beside what the same meter makes of these. The second runs requests of many shapes alone and then
together, each ``--attribution`` times, with no prefix cache. Together they cost less than alone, since they
share the reading of the weights; what is compared is each one's part of the whole: of all that was spent
together, and of the sum of what each cost alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from http_load import WORDS
from live_server import MODEL, Answer, Books, Live, ask, ask_and_leave, body_of, metrics, percentile
from negawatt.engine.host import cpu_s_of
from negawatt.meter import energy_of_cpu_time
from negawatt.serve.receipt import UNASKED
from serve_faults import idle

SHAPES = ((8, 8), (8, 48), (24, 24), (60, 8), (60, 40), (120, 16), (120, 64), (200, 8))
"""Words to read and tokens to write."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, help="of mixed load")
    parser.add_argument("--attribution", type=int, help="rounds of requests alone and together")
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.minutes is None and options.attribution is None:
        parser.error("give --minutes, --attribution or both")
    chosen = (
        *(MODEL, "--port", "0", "--batch", str(options.batch), "--threads", str(options.threads)),
        *("--max-context", "768"),
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.minutes is not None:
            asyncio.run(conserve(Path(folder), chosen, options.minutes, options.streams, options.seed))
    with tempfile.TemporaryDirectory() as folder:
        if options.attribution is not None:
            asyncio.run(attribute(Path(folder), chosen, options.attribution, options.batch, options.seed))


# -- the sum ----------------------------------------------------------------------------------------------


async def conserve(folder: Path, chosen: tuple[str, ...], minutes: float, streams: int, seed: int) -> None:
    """A mixed load, and the ledger beside the meter."""
    books = Books(folder)
    with Live(folder, *chosen) as live:
        [worker] = live.workers()
        begun = time.monotonic()
        seen = await mixed(live, 60 * minutes, streams, seed)
        wall_s = time.monotonic() - begun
        await idle(live)
        assert live.workers() == [worker], "the worker was replaced, so its meter is gone"
        counted_s = cpu_s_of(worker)
    assert counted_s is not None
    receipts = list(books.ledger.receipts())
    assert len({r.id for r in receipts}) == len(receipts) and not books.ledger.verify().faults
    spent: dict[str, float] = defaultdict(float)
    for receipt in receipts:
        spent[receipt.outcome] += receipt.cpu_s
    joules = sum(r.energy.value_j or 0.0 for r in receipts)
    metered_j = energy_of_cpu_time(counted_s).value_j or 0.0
    missing = sum(r.energy.is_missing for r in receipts)
    whole_s = sum(spent.values())
    cached = sum(r.cached_tokens for r in receipts) / max(1, sum(r.input_tokens for r in receipts))
    outcomes = dict(Counter(r.outcome for r in receipts))
    print(
        f"{wall_s:.0f} s, {sum(seen.values())} requests by {streams} clients: {dict(seen)}; receipts "
        f"{outcomes}; {100 * cached:.0f} % of prompts cached"
    )
    print(f"{'':<14}{'CPU s':>10}{'share':>9}")
    for outcome, cpu_s in sorted(spent.items(), key=lambda entry: -entry[1]):
        print(f"{outcome:<14}{cpu_s:>10.3f}{100 * cpu_s / whole_s:>8.2f}%")
    print(f"{'all receipts':<14}{whole_s:>10.3f}\n{'the meter':<14}{counted_s:>10.3f}")
    print(f"difference {100 * (whole_s / counted_s - 1):+.3f} %; joules {joules:.1f} and {metered_j:.1f}, "
          f"difference {100 * (joules / metered_j - 1):+.3f} %; without joules {missing}")  # fmt: skip
    books.close()


async def mixed(live: Live, seconds: float, streams: int, seed: int) -> Counter[str]:
    """Clients that ask, leave and ask again for so long; what they did."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    beginnings = [words(random.Random(seed + n), 40) for n in range(4)]

    async def client(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        while time.monotonic() < end:
            begin = draw.choice(beginnings) + " " if draw.random() < 0.5 else ""
            prompt = begin + words(draw, draw.randrange(4, 80))
            changes = {"stream": draw.random() < 0.5, "n": 2 if draw.random() < 0.1 else 1}
            body = body_of(prompt, draw.randrange(4, 64), **changes)
            if draw.random() < 0.2:
                await ask_and_leave(live.address, body, draw, 1.0)
                seen["left"] += 1
                if draw.random() < 0.5:
                    continue
                seen["asked again"] += 1
            answer = await ask(live.address, body)
            seen[f"answered {answer.status}"] += 1
            if draw.random() < 0.1:
                await asyncio.sleep(2 * draw.random())

    await asyncio.gather(*map(client, range(streams)))
    return seen


def words(draw: random.Random, number: int) -> str:
    return " ".join(draw.choices(WORDS, k=number))


# -- each one's part --------------------------------------------------------------------------------------


async def attribute(folder: Path, chosen: tuple[str, ...], rounds: int, batch: int, seed: int) -> None:
    """The same requests alone and together."""
    draw = random.Random(seed)
    errors: list[float] = []
    savings: list[float] = []
    by_shape: dict[tuple[int, int], list[float]] = defaultdict(list)
    with Live(folder, *chosen, "--no-prefix-cache") as live:
        for _ in range(rounds):
            shapes = draw.sample(SHAPES, batch)
            asked = [body_of(words(draw, reads), writes) for reads, writes in shapes]
            alone = [cost(await ask(live.address, body)) for body in asked]
            together = list(map(cost, await asyncio.gather(*(ask(live.address, body) for body in asked))))
            again = [cost(await ask(live.address, body)) for body in asked]
            alone = [(a + b) / 2 for a, b in zip(alone, again, strict=True)]
            savings.append(sum(together) / sum(alone))
            for shape, one, shared in zip(shapes, alone, together, strict=True):
                part, own = shared / sum(together), one / sum(alone)
                errors.append(abs(part / own - 1))
                by_shape[shape].append(part / own - 1)
        load = await metrics(live.address)
    assert load['negawatt_sequences{by="jobs"}'] == 0
    print(f"{len(errors)} requests in {rounds} rounds of {batch}: together they cost "
          f"{statistics.median(savings):.2f} of what they cost alone")  # fmt: skip
    for (reads, writes), found in sorted(by_shape.items()):
        print(f"{reads:>4} words read, {writes:>3} tokens written: {100 * statistics.mean(found):+6.1f} % "
              f"of its part, {len(found)} times")  # fmt: skip
    print(f"error of a part: median {100 * statistics.median(errors):.1f} %, 9 of 10 below "
          f"{100 * percentile(errors, 0.9):.1f} %")  # fmt: skip


def cost(answer: Answer) -> float:
    """CPU seconds of a request, by its receipt."""
    assert answer.status == 200 and answer.energy is not None, answer
    assert answer.energy["receipt"]["outcome"] not in UNASKED
    return float(answer.energy["cpu_s"])


if __name__ == "__main__":
    main()
