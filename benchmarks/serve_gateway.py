"""What the gateway costs over the bare engine, and what receipts cost: latency and throughput, in turn.

    python benchmarks/serve_gateway.py --requests 60 --streams 4

The engine is the same worker process throughout. ``engine`` hands it jobs over its pipe; ``gateway`` asks
the same of an HTTP server in front of it; ``no receipts`` is that server with books that note nothing. Each
request goes to all three, the order rotating, so that the host's drift touches all alike. The client sends
bytes that were made before over one connection, so that next to nothing of the time is its own;
CPU-milliseconds are those of the gateway's thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvicorn

from http_load import Ask, asks
from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.serve import OpenGate
from negawatt.serve.app import application
from negawatt.serve.books import Books
from negawatt.serve.model import ServedModel
from negawatt.serve.options import ModelOptions
from negawatt.serve.server import Server

Work = Sequence[tuple[list[int], int]]
INPUTS, OUTPUTS = (20, 40, 10, 30), (12, 16, 8, 20)


class Nothing:
    """Books that note nothing."""

    def __init__(self, real: Books) -> None:
        self.beside, self.boundary, self.weights = real.beside, real.boundary, real.weights

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class Gateway:
    """The server in a thread of this process, and its model."""

    def __init__(self, artifact: Artifact, batch: int, threads: int) -> None:
        settings = Settings("llamacpp", batch=batch, threads=threads, max_context=512)
        gate = OpenGate()
        self.model = ServedModel(artifact.name, artifact, ModelOptions(settings), gate.charge)
        app = application(Server([self.model], gate))
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        self._thread = threading.Thread(target=self._run)
        self.native_id = 0
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        assert self.model._worker is not None
        self._books = self.model._worker.books

    def _run(self) -> None:
        self.native_id = threading.get_native_id()
        self._server.run()

    def receipts(self, wanted: bool) -> None:
        assert self.model._worker is not None
        self.model._worker.books = self._books if wanted else Nothing(self._books)  # type: ignore[assignment]

    def cpu_s(self) -> float:
        with open(f"/proc/self/task/{self.native_id}/schedstat") as file:
            return int(file.read().split()[0]) / 1e9

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


class Bare:
    """Jobs for the same worker, handed over in the gateway's own event loop without anything between."""

    def __init__(self, gateway: Gateway) -> None:
        self._model = gateway.model

    async def ask(self, prompt: list[int], tokens: int) -> float:
        from negawatt.engine.batching import Job

        model = self._model
        worker = model._worker
        assert worker is not None
        done = asyncio.Event()
        number = 10**9 + next(model._numbers)
        inner = worker._on_report

        def watch(report: Any) -> None:
            if any(job == number for job, _ in report.finished):
                done.set()
                worker._on_report = inner
            inner(report)

        worker._on_report = watch
        begun = time.perf_counter()
        worker.submit(Job(number, prompt, tokens))
        await done.wait()
        return time.perf_counter() - begun


class Client:
    """One connection that is kept."""

    def __init__(self, url: str, model: str) -> None:
        self._host, self._model = url.removeprefix("http://"), model
        host, port = self._host.split(":")
        self._socket = socket.create_connection((host, int(port)), 300)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *about: object) -> None:
        self._socket.close()

    def post(self, prompt: list[int], tokens: int) -> float:
        """Seconds to the last byte of the answer."""
        asked = {"model": self._model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body = json.dumps({**asked, "ignore_eos": True})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: {len(body)}\r\n\r\n"
        sent, found = (head + body).encode(), b""
        begun = time.perf_counter()
        self._socket.sendall(sent)
        while not (length := re.search(rb"content-length: (\d+)\r\n(?:.*\r\n)*\r\n", found)) or (
            len(found) < length.end() + int(length[1])
        ):
            found += self._socket.recv(65536)
        taken_s = time.perf_counter() - begun
        assert found.startswith(b"HTTP/1.1 200"), found
        return taken_s


def latencies(
    gateway: Gateway, loop: asyncio.AbstractEventLoop, work: Sequence[tuple[list[int], int]]
) -> None:
    """One request at a time, each on all three."""
    bare, found = Bare(gateway), {"engine": [], "gateway": [], "no receipts": []}  # type: ignore[var-annotated]
    gateway_cpu_s = 0.0
    with Client(gateway.url, gateway.model.name) as client:
        for number, (prompt, tokens) in enumerate(work):
            names = list(found)
            for turn in range(3):
                name = names[(number + turn) % 3]
                assert gateway.model._worker is not None and gateway.model._worker._link is not None
                loop.call_soon_threadsafe(gateway.model._worker._link.forget)  # nobody profits from another
                if name == "engine":
                    asked = asyncio.run_coroutine_threadsafe(bare.ask(prompt, tokens), loop)
                    found[name].append(asked.result())
                    continue
                gateway.receipts(name == "gateway")
                before = gateway.cpu_s()
                found[name].append(client.post(prompt, tokens))
                gateway_cpu_s += (gateway.cpu_s() - before) / 2
    base = np.array(found["engine"])
    print(f"{'':<14}{'p50 ms':>9}{'p99 ms':>9}{'over engine p50':>17}{'p99':>8}")
    for name, values in found.items():
        over = 1000 * (np.array(values) - base)
        print(f"{name:<14}{1000 * np.median(values):>9.2f}{1000 * np.quantile(values, 0.99):>9.2f}"
              f"{np.median(over):>17.2f}{np.quantile(over, 0.99):>8.2f}")  # fmt: skip
    print(f"CPU of the gateway: {1000 * gateway_cpu_s / len(work):.2f} ms a request of "
          f"{np.mean([tokens for _, tokens in work]):.0f} tokens", flush=True)  # fmt: skip


def throughput(gateway: Gateway, streams: int, work: Work, rounds: int) -> None:
    """All streams at once, receipts on and off in turn."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    costs: dict[bool, list[float]] = {True: [], False: []}
    tokens = sum(count for _, count in work)
    for number in range(2 * rounds):
        wanted = number % 4 in (0, 3)
        gateway.receipts(wanted)
        parts = [work[n::streams] for n in range(streams)]

        def stream(part: Work) -> None:
            with Client(gateway.url, gateway.model.name) as client:
                for prompt, count in part:
                    client.post(prompt, count)

        before, begun = gateway.cpu_s(), time.perf_counter()
        threads = [threading.Thread(target=stream, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[wanted].append(tokens / (time.perf_counter() - begun))
        costs[wanted].append(1000 * (gateway.cpu_s() - before) / tokens)
    ratios = sorted(a / b for a, b in zip(rates[True], rates[False], strict=True))
    with_them, without = np.median(rates[True]), np.median(rates[False])
    whole_us = 1000 * np.median(costs[True])
    extra_us = whole_us - 1000 * np.median(costs[False])
    print(f"{streams} streams: {with_them:.1f} tok/s with receipts, {without:.1f} without; ratio "
          f"{np.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})")  # fmt: skip
    print(f"the gateway takes {whole_us:.0f} µs of CPU a token, receipts {extra_us:.0f} of them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    artifact = Artifact.open(options.model)
    gateway = Gateway(artifact, options.streams, options.threads)
    try:
        chosen: list[Ask] = asks(options.requests, 0, INPUTS, OUTPUTS)
        work = [(artifact.tokenizer.encode(ask.prompt), ask.tokens) for ask in chosen]
        assert gateway.model._life is not None
        latencies(gateway, gateway.model._life.get_loop(), work)
        throughput(gateway, options.streams, work, options.rounds)
    finally:
        gateway.close()


if __name__ == "__main__":
    main()
