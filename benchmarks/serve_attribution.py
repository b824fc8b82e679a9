"""Does each request of a batch pay its own part? Its receipt beside what it cost when it ran alone.

    python benchmarks/serve_attribution.py --requests 24 --streams 4,16 --rounds 3

Requests with lengths from a real trace run alone, one after the other, and then the same ones together, so
many at once; the two take turns. Nothing is shared by a prefix cache, and no two prompts begin alike.

What is compared is CPU seconds, of which joules are a multiple for all alike. A batch spends less than its
requests do alone, since it reads the weights once for all of them, and nothing says whose that saving is.
Our books share it in proportion to what each request costs; so the measure is each one's part of the whole:

    error = (receipt ÷ sum of receipts of its run)  ÷  (cost alone ÷ sum of costs alone)  −  1

over the requests that ended while all streams had work (at a run's end fewer share a step, and each pays
more: that is so, and no error). The cost alone is the median over rounds, of a server that has nothing else
to do. ``unscaled`` is receipt ÷ cost alone, the saving itself. The same error is told of the two parts of a
receipt, what reading the prompt cost and what writing the answer did, and by the shape of the requests.

Sharing saves more of writing than of reading: that is the engine's doing, not the books', yet whoever writes
much seems to pay too little in ``whole``. ``by phase`` takes it out: the cost alone of either part is scaled
by what the run saved of that part, and their sum is what the receipt is compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from live_server import MODEL, Live, ask, percentile
from negawatt.serve.receipt import Receipt
from traffic import TRACES, Length, lengths

MOST_TOKENS = 640
PARTS = ("whole", "prefill", "decode")


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a request by its receipt; the parts of them in the proportion of its joules.

    Attributes:
        ended_s: monotonic.
    """

    whole: float
    prefill: float
    decode: float
    ended_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACES / "azure_llm_2023_conv.csv")
    parser.add_argument("--scale", type=float, default=0.125, help="of the trace's lengths")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--streams", default="4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="llamacpp")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    drawn = lengths(options.trace, options.requests, options.seed, scale=options.scale, most=MOST_TOKENS)
    reads, writes = ([getattr(each, name) for each in drawn] for name in ("reads", "writes"))
    print(
        f"{len(drawn)} requests: {statistics.median(reads):g} tokens read (at most {max(reads)}), "
        f"{statistics.median(writes):g} written (at most {max(writes)})"
    )
    for streams in map(int, options.streams.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            chosen = (
                *(MODEL, "--port", "0", "--engine", options.engine, "--batch", str(streams)),
                *("--threads", str(options.threads), "--max-context", "768", "--no-prefix-cache"),
            )
            with Live(Path(folder), *chosen) as live:
                asyncio.run(compare(live.address, drawn, streams, options.rounds, options.seed))


async def compare(address: str, drawn: Sequence[Length], streams: int, rounds: int, seed: int) -> None:
    """Rounds of all requests alone and together, and what came out."""
    draw = random.Random(seed)
    alone: list[list[Cost]] = [[] for _ in drawn]
    together: list[dict[int, Cost]] = []
    for _ in range(rounds):
        found, _ = await run(address, drawn, 1, draw)
        for number, cost in found.items():
            alone[number].append(cost)
        found, dry_s = await run(address, drawn, streams, draw)
        together.append({number: cost for number, cost in found.items() if cost.ended_s <= dry_s})
    usual = [
        {part: statistics.median(getattr(cost, part) for cost in costs) for part in PARTS} for costs in alone
    ]
    spread = [
        abs(cost.whole / usual[number]["whole"] - 1) for number, costs in enumerate(alone) for cost in costs
    ]
    print(f"\n{streams} streams, {rounds} rounds; alone, a request deviates from its median by "
          f"{100 * statistics.median(spread):.1f} % (p90 {100 * percentile(spread, 0.9):.1f})")  # fmt: skip
    print(f"{'part':<10}{'requests':>9}{'error: median':>15}{'p90':>8}{'mean, signed':>14}{'unscaled':>10}")
    for part in PARTS:
        errors = [error for round_ in together for _, error in errors_of(round_, usual, part)]
        unscaled = [getattr(c, part) / usual[n][part] for round_ in together for n, c in round_.items()]
        print(f"{part:<10}{told(errors)}{statistics.median(unscaled):>10.2f}", flush=True)
    print(f"{'by phase':<10}{told([error for round_ in together for error in phased(round_, usual)])}")
    shapes: dict[str, list[float]] = {}
    for round_ in together:
        for number, error in errors_of(round_, usual, "whole"):
            share = usual[number]["prefill"] / usual[number]["whole"]
            size = "under 1/3" if share < 1 / 3 else "1/3 to 2/3" if share < 2 / 3 else "over 2/3"
            shapes.setdefault(f"prompt is {size}", []).append(error)
    for name, found_errors in sorted(shapes.items()):
        print(f"  {name:<24} of its cost: {100 * statistics.mean(found_errors):+6.1f} % "
              f"of its part, {len(found_errors)} times")  # fmt: skip


def errors_of(
    round_: dict[int, Cost], usual: Sequence[dict[str, float]], part: str
) -> list[tuple[int, float]]:
    """See the module's text."""
    paid = sum(getattr(cost, part) for cost in round_.values())
    own = sum(usual[number][part] for number in round_)
    return [
        (number, getattr(cost, part) / paid / (usual[number][part] / own) - 1)
        for number, cost in round_.items()
    ]


def phased(round_: dict[int, Cost], usual: Sequence[dict[str, float]]) -> list[float]:
    """See the module's text."""
    saved = {
        part: sum(getattr(cost, part) for cost in round_.values())
        / sum(usual[number][part] for number in round_)
        for part in ("prefill", "decode")
    }
    return [
        cost.whole / sum(usual[number][part] * scale for part, scale in saved.items()) - 1
        for number, cost in round_.items()
    ]


def told(errors: Sequence[float]) -> str:
    sizes = list(map(abs, errors))
    return (
        f"{len(errors):>9}{100 * statistics.median(sizes):>14.1f}%{100 * percentile(sizes, 0.9):>7.1f}%"
        f"{100 * statistics.mean(errors):>+13.1f}%"
    )


async def run(
    address: str, drawn: Sequence[Length], streams: int, draw: random.Random
) -> tuple[dict[int, Cost], float]:
    """All requests in an order of their own, so many at once; and when there were no more to begin."""
    order = deque(draw.sample(range(len(drawn)), len(drawn)))
    found: dict[int, Cost] = {}
    dry_s: list[float] = []

    async def stream() -> None:
        while order:
            number = order.popleft()
            length = drawn[number]
            prompt = [draw.randrange(100, 40_000) for _ in range(length.reads)]
            body = {
                "model": MODEL, "prompt": prompt, "max_tokens": length.writes, "temperature": 0,
                "ignore_eos": True,
            }  # fmt: skip
            answer = await ask(address, body)
            assert answer.status == 200 and answer.energy is not None, answer
            found[number] = cost_of(Receipt.from_json(answer.energy))
        dry_s.append(time.monotonic())

    await asyncio.gather(*(stream() for _ in range(streams)))
    return found, min(dry_s) if streams > 1 else max(dry_s)


def cost_of(receipt: Receipt) -> Cost:
    prefill, decode = receipt.prefill.value_j, receipt.decode.value_j
    assert prefill is not None and decode is not None
    share = prefill / (prefill + decode)
    return Cost(receipt.cpu_s, share * receipt.cpu_s, (1 - share) * receipt.cpu_s, time.monotonic())


if __name__ == "__main__":
    main()
