"""Streams of requests to an OpenAI-compatible server, and what serving them cost the server's processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

WORDS = [
    *("harbour", "kettle", "lantern", "orchard", "gravel", "thimble", "copper", "meadow", "violin", "saddle"),
    *("winter", "pepper", "marble", "anchor", "basket", "candle", "desert", "engine", "feather", "garden"),
    *("hammer", "island", "jacket", "kitchen", "ladder", "mirror", "needle", "oyster"),
]
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Ask:
    """One request: a prompt in words, and exactly how many tokens to write."""

    prompt: str
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """What the client saw of one request.

    Attributes:
        first_s, whole_s: seconds to the first piece of text, and to the end.
        tokens: that were asked for and written.
    """

    first_s: float
    whole_s: float
    tokens: int


def asks(number: int, seed: int, inputs: Sequence[int], outputs: Sequence[int]) -> list[Ask]:
    """Requests with lengths in turn; no two begin alike, so no cache helps."""
    drawn = random.Random(seed)
    return [
        Ask(" ".join(drawn.choices(WORDS, k=inputs[n % len(inputs)])), outputs[n % len(outputs)])
        for n in range(seed, seed + number)
    ]


async def load(url: str, model: str, streams: Sequence[Sequence[Ask]]) -> tuple[list[Outcome], float]:
    """Each stream sends one request after the other, all streams at once; also the seconds it took."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # servers close idle ones
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(ask: Ask) -> Outcome:
            body = {
                "model": model, "prompt": ask.prompt, "max_tokens": ask.tokens, "temperature": 0,
                "ignore_eos": True, "stream": True,
            }  # fmt: skip
            begun, first_s = time.perf_counter(), 0.0
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for line in answer.aiter_lines():
                    if (
                        not first_s
                        and line.startswith("data: {")
                        and json.loads(line[6:])["choices"][0]["text"]
                    ):
                        first_s = time.perf_counter() - begun
            return Outcome(first_s, time.perf_counter() - begun, ask.tokens)

        async def stream(own: Sequence[Ask]) -> list[Outcome]:
            return [await one(ask) for ask in own]

        begun = time.perf_counter()
        found = await asyncio.gather(*map(stream, streams))
        return [outcome for each in found for outcome in each], time.perf_counter() - begun


class Served:
    """A server in a process of its own; its command says ``{"address": …}`` on standard output.

    Args:
        front: where what speaks HTTP runs: the ``process`` itself, beside a child that has the model; its
            main ``thread``; or ``inside``, not to be told from the rest.
    """

    def __init__(self, name: str, command: Sequence[str | Path], front: str = "inside") -> None:
        self.name, self._front = name, front
        self._process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        said = ""
        while (line := self._process.stdout.readline()) and not (said + line).rstrip().endswith("}"):
            said += line
        if not line:
            raise RuntimeError(f"{name} ended with code {self._process.wait()}")
        self.address: str = json.loads(said + line)["address"]

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far of what speaks HTTP (0 where that is not known), and of all of it."""
        own = self._process.pid
        children = Path(f"/proc/{own}/task").glob("*/children")
        below = {pid for file in children for pid in file.read_text().split()}
        whole = _cpu_s(Path(f"/proc/{own}"))
        front = {"process": whole, "thread": _cpu_s(Path(f"/proc/{own}/task/{own}"))}.get(self._front, 0.0)
        return front, whole + sum(_cpu_s(Path(f"/proc/{pid}")) for pid in below)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait(30)


def _cpu_s(folder: Path) -> float:
    fields = (folder / "stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
