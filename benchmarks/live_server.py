"""A server of the real model in a process of its own, looked at from outside, and clients that may leave."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from negawatt.database import Database
from negawatt.serve.account import Account
from negawatt.serve.keys import server_secret
from negawatt.serve.ledger import ReceiptLedger

MODEL = "smollm2-135m-instruct"
PROGRAM = "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"
PATH = "/v1/completions"
_SERIES = re.compile(r"^([^#\s]\S*) (\S+)$", re.MULTILINE)


LONGEST_S = 3600.0
"""A server that nobody ended is ended after so long."""


class Live:
    """Args:
    folder: of its database, secret and log; another server with the same one shares them.
    options: of ``negawatt serve``.
    environment: variables beside this process's own.
    """

    _count = 0

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        Live._count += 1
        self.folder, self._log = folder, folder / f"log-{Live._count}"
        common = ["--json", "--database", str(folder / "serve.db"), "--secret-file", str(folder / "secret")]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "serve", *common, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "NEGAWATT_SERVE_FILES": str(folder / "files"), **(environment or {})},
            )
        watchdog = threading.Timer(LONGEST_S, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        self._watchdog = watchdog
        assert self.process.stdout is not None
        said = ""
        while (line := self.process.stdout.readline()) and line.rstrip() != "}":
            said += line
        if not line:
            self.close()
            raise RuntimeError(f"the server ended: {self.said()}")
        self.address: str = json.loads(said + "}")["address"]

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """Its log so far."""
        return self._log.read_text()

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        found: list[int] = []
        for file in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, file.read_text().split())
        return found

    def descriptors(self) -> int:
        """Files and sockets that it has open, as the kernel counts them."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_bytes(self) -> int:
        """Memory of the server and its workers."""
        return sum(map(_resident_bytes, (self.pid, *self.workers())))

    def wait(self, most_s: float = 60.0) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(most_s)

    def close(self) -> None:
        self._watchdog.cancel()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()


class Books:
    """The ledger and the budgets of servers, opened beside them."""

    def __init__(self, folder: Path) -> None:
        secret = server_secret(folder / "secret")
        self.database = Database(str(folder / "serve.db"))
        self.ledger = ReceiptLedger(self.database, secret)
        self.account = Account(self.database, self.ledger)

    def close(self) -> None:
        self.account.close()
        self.database.close()


@dataclass
class Answer:
    """What a client saw.

    Attributes:
        status: of HTTP; 0 where the client left before, or the connection broke.
        text: of the answer, in pieces or whole.
        error: OpenAI's error object, in the body or in the stream; None for none.
        whole: whether the answer came to its proper end.
        first_s, whole_s: seconds to the first piece of text, and to the end.
    """

    status: int = 0
    text: str = ""
    error: dict[str, Any] | None = None
    whole: bool = False
    first_s: float = 0.0
    whole_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    energy: dict[str, Any] | None = None


def body_of(prompt: str, tokens: int, **changes: Any) -> dict[str, Any]:
    """A completion of exactly so many tokens, the likeliest ones."""
    always = {"model": MODEL, "temperature": 0, "ignore_eos": True}
    return {**always, "prompt": prompt, "max_tokens": tokens, **changes}


async def ask(address: str, body: dict[str, Any]) -> Answer:
    """Ask over a connection of its own and read to the end; a connection that breaks leaves `whole` false."""
    parts, found, begun = urlsplit(address), Answer(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError:
        return found
    try:
        writer.write(request_of(address, body))
        await _read(reader, found, begun)
    except (OSError, asyncio.IncompleteReadError):
        found.whole = False
    finally:
        found.whole_s = time.perf_counter() - begun
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return found


async def ask_and_leave(address: str, body: dict[str, Any], draw: random.Random, longest_s: float) -> None:
    """Ask, and go at a random moment: in the middle of the request, before or in the answer, by closing the
    connection or by breaking it off."""
    parts, sent = urlsplit(address), request_of(address, body)
    if draw.random() < 0.1:
        sent = sent[: draw.randrange(1, len(sent))]
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(sent)
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s * draw.random() ** 2):
                await reader.read(-1)
        if draw.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
            await writer.wait_closed()
    except OSError:
        return


def request_of(address: str, body: dict[str, Any], path: str = PATH) -> bytes:
    """The bytes of a request; the server closes the connection after its answer."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {urlsplit(address).netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + content


async def metrics(address: str) -> dict[str, float]:
    """The series of /metrics, by name and labels as they are written there."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET /metrics HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
    head, _, page = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head.splitlines()[0], page
    return {name: float(value) for name, value in _SERIES.findall(page.decode())}


async def ready(address: str) -> bool:
    """Whether it says that it should get requests."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET /ready HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
    head = await reader.read(-1)
    writer.close()
    return b" 200 " in head.splitlines()[0]


async def _read(reader: asyncio.StreamReader, found: Answer, begun: float) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    found.headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
    found.status = int(head[0].split()[1])
    if found.headers.get("transfer-encoding") != "chunked":
        content = await reader.readexactly(int(found.headers["content-length"]))
        _take(json.loads(content), found)
        found.first_s = time.perf_counter() - begun
        found.whole = True
        return
    ended, rest = False, b""
    while length := int(await reader.readline(), 16):
        rest += await reader.readexactly(length)
        await reader.readexactly(2)
        *events, rest = rest.split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                ended = True
                continue
            _take(json.loads(event.removeprefix(b"data: ")), found)
            if found.text and not found.first_s:
                found.first_s = time.perf_counter() - begun
    await reader.readexactly(2)
    found.whole = ended


def _take(data: dict[str, Any], found: Answer) -> None:
    found.error = data.get("error", found.error)
    found.text += "".join(choice["text"] for choice in data.get("choices", ()))
    found.energy = data.get("energy") or (data.get("usage") or {}).get("energy") or found.energy


def code_prompt(number: int) -> str:
    """A prompt whose likeliest continuation repeats its number, and so tells whose answer it is."""
    return f"code {number}, code {number}, code {number}, code {number}, code"


def percentile(values: Sequence[float], share: float) -> float:
    """Of some values, the one below which a share of them lies; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def _resident_bytes(pid: int) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024
    return 0
