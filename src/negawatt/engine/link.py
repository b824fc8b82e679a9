"""`Link`: the parent's end of a `Session`, for asyncio."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable
from dataclasses import asdict

from negawatt.engine.batching import Job, Part, Report
from negawatt.engine.cells import Occupancy
from negawatt.engine.engine import Engine
from negawatt.engine.picker import Picked
from negawatt.engine.wire import Message
from negawatt.errors import NegawattError, WorkerDied

OnReport = Callable[[Report], None]
OnIdle = Callable[[float], None]
OnCancelled = Callable[[int], None]


class Link:
    """Sends jobs to the worker of an open engine and hands out what it reports.

    Args:
        engine: open, made with ``session``.
        on_report: called after every step.
        on_idle: called with CPU seconds that the worker spent on no sequence.
        on_cancelled: called with a cancelled job's id once no later report can name it.

    Attributes:
        occupancy: of the worker's cache, as it last said.
    """

    def __init__(
        self, engine: Engine, on_report: OnReport, on_idle: OnIdle, on_cancelled: OnCancelled
    ) -> None:
        self._engine, self._on_report = engine, on_report
        self._on_idle, self._on_cancelled = on_idle, on_cancelled
        self.occupancy = Occupancy()
        self._writer: asyncio.WriteTransport | None = None
        self.connected = asyncio.Event()
        """Set once jobs can be submitted, and when it has come to nothing."""

    async def run(self) -> NegawattError:
        """Speak with the worker until it ends; returns why it did."""
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=2**26)
        failure: NegawattError | None = None
        try:
            readable, writable = self._engine.begin_session()
            incoming, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), readable)
            self._writer, _ = await loop.connect_write_pipe(asyncio.Protocol, writable)
            self.connected.set()
            while True:
                failure = self._handle(await _frame(stream)) or failure
        except (asyncio.IncompleteReadError, OSError, ValueError, struct.error):
            return failure if failure is not None else await asyncio.to_thread(self._engine.why_died)
        finally:
            self.connected.set()
            if self._writer is not None:
                if not self._writer.is_closing():
                    self._writer.abort()
                self._writer = None
                incoming.close()

    def _handle(self, message: Message) -> NegawattError | None:
        if "cells" in message:
            self.occupancy = Occupancy(*message["cells"])
        if "parts" in message:
            self._on_report(report_of(message))
        elif "idle_cpu_s" in message:
            self._on_idle(float(message["idle_cpu_s"]))
        elif "cancelled" in message:
            self._on_cancelled(int(message["cancelled"]))
        elif "failed" in message:
            return WorkerDied(f"the {self._engine.settings.engine} engine failed: {message['failed']}")
        return None

    def submit(self, job: Job) -> None:
        self._send({"submit": {**asdict(job), "stop_ids": sorted(job.stop_ids)}})

    def cancel(self, job: int) -> None:
        self._send({"cancel": job})

    def forget(self) -> None:
        """Empty the prefix cache."""
        self._send({"forget": True})

    def _send(self, message: Message) -> None:
        if self._writer is None or self._writer.is_closing():
            return  # the worker has ended: `run` says so to everybody
        text = json.dumps({**message, "arrays": []}).encode()
        self._writer.write(struct.pack("<Q", len(text)) + text)


async def _frame(stream: asyncio.StreamReader) -> Message:
    (length,) = struct.unpack("<Q", await stream.readexactly(8))
    message: Message = json.loads(await stream.readexactly(length))
    return message


def report_of(message: Message) -> Report:
    """A `Report` from what `negawatt.engine.session.message_of` made of it."""
    return Report(
        tuple(
            Part(job, "prefill" if prefill else "decode", fed, context, *own)
            for job, prefill, fed, context, *own in message["parts"]
        ),
        tuple((job, cached) for job, cached in message["started"]),
        tuple(
            (job, Picked(token, rest[0], tuple((i, p) for i, p in rest[1])) if rest else Picked(token))
            for job, token, *rest in message["picked"]
        ),
        tuple((job, reason) for job, reason in message["finished"]),
        tuple((job, base64.b64decode(vector)) for job, vector in message["embedded"]),
        tuple((job, why) for job, why in message["failed"]),
        message["wall_s"],
        message["cpu_s"],
        message["beside_cpu_s"],
    )
