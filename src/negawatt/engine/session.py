"""`Session`: a worker that takes and forgets sequences while it writes others, one step at a time.

Frames of `negawatt.engine.wire`, to the worker:

- ``{"submit": JOB}``: the fields of `Job`; it waits until there is room;
- ``{"cancel": id}``: forget a job before the next step; answered by ``{"cancelled": id}``, after which no
  report names it;
- ``{"forget": true}``: empty the prefix cache;
- ``{"end": true}``: leave the session when nothing is under way.

From the worker, after every step, the fields of `Report`; ``{"idle_cpu_s": …}`` when work comes after none,
and once at the start, where it holds all the worker has spent so far; ``{"failed": sentence}`` when the
engine failed, after which the worker ends. Reports and answers to ``cancel`` carry as ``cells`` the fields of
`negawatt.engine.cells.Occupancy` as it then is. While there is nothing to do it sleeps in a read.

The CPU seconds of all frames add up to those of the process.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from negawatt.artifact import Artifact
from negawatt.engine.backend import Backend
from negawatt.engine.batching import STEP_TOKENS, Batching, Job, Report
from negawatt.engine.cells import Cells
from negawatt.engine.drafter import Drafter
from negawatt.engine.encoding import Encoding
from negawatt.engine.grammar import Grammars
from negawatt.engine.wire import Message, receive, send
from negawatt.errors import EngineError


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Attributes:
    batch: most sequences at once.
    capacity: tokens that the cache holds, over all sequences, where the engine shares one pool.
    slots: sequences that it holds, finished ones included.
    step_tokens: most tokens of a step.
    prefix_cache: whether finished sequences are kept for prompts that begin like them.
    """

    batch: int
    capacity: int
    slots: int
    step_tokens: int = STEP_TOKENS
    prefix_cache: bool = True


class Session:
    """Runs in the worker process until the parent ends it or its pipe."""

    def __init__(
        self,
        backend: Backend,
        reader: IO[bytes],
        writer: IO[bytes],
        options: SessionOptions,
        artifact: Path,
        drafter: Drafter | None = None,
    ) -> None:
        self._batching = _batching(backend, options, artifact, drafter)
        self._reader, self._writer = reader, writer
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()

    def run(self) -> None:
        """Serve until ``end`` or until the parent is gone.

        Raises:
            EngineError: the engine failed; the parent has been told.
        """
        threading.Thread(target=self._read, name="inbox", daemon=True).start()
        send(self._writer, {"idle_cpu_s": time.process_time()})
        self._batching.idle_cpu_s()
        ending = False
        while True:
            if not self._batching.busy:
                if ending:
                    return
                message = self._inbox.get()
                send(self._writer, {"idle_cpu_s": self._batching.idle_cpu_s()})
            elif not self._inbox.empty():
                message = self._inbox.get()
            else:
                self._step()
                continue
            if message is None:  # the parent is gone: nobody waits for the rest
                return
            ending = ending or "end" in message
            self._handle(message)

    def _step(self) -> None:
        try:
            report = self._batching.step()
        except EngineError as exc:
            send(self._writer, {"failed": str(exc)})
            raise
        send(self._writer, {**message_of(report), **self._cells()})

    def _cells(self) -> Message:
        return {"cells": astuple(self._batching.occupancy)}

    def _handle(self, message: Message) -> None:
        if "submit" in message:
            self._batching.submit(job_of(message["submit"]))
        elif "cancel" in message:
            self._batching.cancel(message["cancel"])
            send(self._writer, {"cancelled": message["cancel"], **self._cells()})
        elif "forget" in message:
            self._batching.forget()

    def _read(self) -> None:
        while True:
            try:
                frame = receive(self._reader)
            except (OSError, ValueError, EOFError):
                frame = None
            self._inbox.put(None if frame is None else frame[0])
            if frame is None or "end" in frame[0]:
                return


def _batching(
    backend: Backend, options: SessionOptions, artifact: Path, drafter: Drafter | None
) -> Batching | Encoding:
    if backend.pooling:
        return Encoding(backend, options.batch, options.step_tokens)
    if backend.shares:
        slots, capacity = options.slots, options.capacity
    else:
        slots = backend.settings.batch
        capacity = slots * backend.settings.max_context
    cells = Cells(backend, slots, capacity, keep=options.prefix_cache)

    def grammars() -> Grammars:
        return Grammars(Artifact.open(artifact).tokenizer, backend.vocab_size)

    if drafter is not None:
        drafter.keep = options.prefix_cache
    return Batching(backend, cells, min(options.batch, slots), options.step_tokens, grammars, drafter)


def job_of(data: Mapping[str, Any]) -> Job:
    """A `Job` from its JSON."""
    return Job(**{**data, "stop_ids": frozenset(data["stop_ids"])})


def message_of(report: Report) -> Message:
    """A report as JSON, short: it is sent every step."""
    return {
        "parts": [
            [p.job, p.phase == "prefill", p.fed, p.context, *([p.own_cpu_s] if p.own_cpu_s else [])]
            for p in report.parts
        ],
        "started": report.started,
        "picked": [
            [job, found.token] if found.log_prob is None else [job, found.token, found.log_prob, found.top]
            for job, found in report.picked
        ],
        "finished": report.finished,
        "embedded": [[job, base64.b64encode(vector).decode()] for job, vector in report.embedded],
        "failed": report.failed,
        "wall_s": report.wall_s,
        "cpu_s": report.cpu_s,
        "beside_cpu_s": report.beside_cpu_s,
    }
