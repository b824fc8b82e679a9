"""What it costs to hold an answer to a JSON schema, and what is saved by not asking where there is no choice.

    python benchmarks/serve_schemas.py --rounds 8

Three kinds of requests to one server, in turn: ``free`` answers; answers ``held`` to a schema; and held ones
of which every token is ``asked`` of the model (with log-probabilities). CPU seconds are those of receipts.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import median
from typing import Any

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.serve import Caller, OpenGate
from negawatt.serve.model import ServedModel
from negawatt.serve.options import ModelOptions
from negawatt.serve.server import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "genre": {"enum": ["drama", "comedy", "horror"]},
        "rating": {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5},
        "seen": {"type": "boolean"},
    },
    "required": ["title", "year", "genre", "rating", "seen"],
    "additionalProperties": False,
}
HELD = {"response_format": {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}}
KINDS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "held": HELD,
    "held, all asked": {**HELD, "logprobs": True},
}


async def measured(rounds: int, engine: str) -> dict[str, list[tuple[float, int]]]:
    """For each kind CPU seconds and tokens of every answer."""
    settings = Settings(engine, batch=4, threads=1, max_context=512)
    model = ServedModel(
        "m", Artifact.open("smollm2-135m-instruct"), ModelOptions(settings), lambda receipt: None
    )
    server = Server([model], OpenGate())
    await server.start()
    found: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
    try:
        for number in range(-1, rounds):  # the first one warms up
            for kind, how in KINDS.items():
                asked = [{"role": "user", "content": f"Describe film number {number % 5} as JSON."}]
                body = {"model": "m", "messages": asked, "temperature": 0, "max_tokens": 80, **how}
                usage = (await server.answer(Caller(), "/v1/chat/completions", body))["usage"]
                if number >= 0:
                    found[kind].append((usage["energy"]["cpu_s"], usage["completion_tokens"]))
    finally:
        await server.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--engine", default="llamacpp")
    options = parser.parse_args()
    found = asyncio.run(measured(options.rounds, options.engine))
    costs = {kind: median(1000 * cpu_s / tokens for cpu_s, tokens in told) for kind, told in found.items()}
    print("| answers | tokens | CPU-ms a token | ratio to free |\n|---|---|---|---|")
    for kind, cost in costs.items():
        tokens = median(tokens for _, tokens in found[kind])
        print(f"| {kind} | {tokens:.0f} | {cost:.2f} | {cost / costs['free']:.2f} |")


if __name__ == "__main__":
    main()
