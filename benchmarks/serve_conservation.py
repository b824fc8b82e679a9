"""Do receipts and idle time add up to the meter?

    python benchmarks/serve_conservation.py --minutes 10

Runs a mixed load (streams or not, shared beginnings, several choices, clients that leave and ask
again) and adds up the ledger: its CPU seconds beside those that the kernel counts for the model's process,
its joules beside what the same meter makes of these.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from http_load import WORDS
from live_server import MODEL, Books, Live, ask, ask_and_leave, body_of
from negawatt.engine.host import cpu_s_of
from negawatt.meter import energy_of_cpu_time
from serve_faults import idle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of mixed load")
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen = (
        *(MODEL, "--port", "0", "--batch", str(options.batch), "--threads", str(options.threads)),
        *("--max-context", "768"),
    )
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(conserve(Path(folder), chosen, options.minutes, options.streams, options.seed))


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


if __name__ == "__main__":
    main()
