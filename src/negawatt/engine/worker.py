"""``python -m negawatt.engine.worker READ_FD WRITE_FD``: one engine, one model, one process.

The worker answers requests one at a time until its parent closes the pipe. Its CPU time and peak
memory are those of the engine, and when the engine dies only the worker does.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from negawatt.artifact import Artifact
from negawatt.engine import backends, classifier
from negawatt.engine.backend import Backend
from negawatt.engine.cores import confine
from negawatt.engine.decode import Decoder, Request
from negawatt.engine.drafter import Drafter
from negawatt.engine.host import peak_rss_bytes
from negawatt.engine.session import Session, SessionOptions
from negawatt.engine.settings import Settings
from negawatt.engine.wire import Message, receive, send
from negawatt.errors import EngineError, NegawattError


class Worker:
    """Serves the parent's requests; each ``do_NAME`` method answers the request called NAME."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader, self._writer = reader, writer
        self._decoder: Decoder | None = None

    def serve(self) -> None:
        """Answer until the parent closes its end."""
        while (frame := receive(self._reader)) is not None:
            message, _ = frame
            handler: Callable[..., tuple[Message, list[Any]]] = getattr(self, f"do_{message.pop('do')}")
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                answer, arrays = handler(**message)
            except NegawattError as exc:
                answer, arrays = {"error": str(exc), "kind": type(exc).__name__}, []
            except MemoryError:
                answer, arrays = {"error": "the engine ran out of memory", "kind": "EngineError"}, []
            answer["usage"] = {
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
                "total_cpu_s": time.process_time(),
                "peak_rss_bytes": peak_rss_bytes(),
            }
            send(self._writer, answer, arrays)

    @property
    def _loaded(self) -> Decoder:
        if self._decoder is None:
            raise NegawattError("no model is loaded")
        return self._decoder

    def _asked_to(self, what: str, kind: str = "write text") -> Decoder:
        """The model, if it is one that can do this: ``write text``, ``classify`` or ``embed``."""
        decoder = self._loaded
        labels = ", ".join(decoder.backend.labels)
        does = "embed" if decoder.backend.pooling else "classify" if labels else "write text"
        if does != kind:
            told = {
                "embed": f"the model turns texts into vectors and cannot {what}",
                "classify": f"the model tells {labels} apart and cannot {what}",
                "write text": f"the model writes text and cannot {what}; "
                + ("choose a pooling" if kind == "embed" else "make a classifier with negawatt compress"),
            }
            raise EngineError(told[does])
        return decoder

    def _steps(self) -> list[dict[str, Any]]:
        steps, self._loaded.steps = self._loaded.steps, []
        return [asdict(step) for step in steps]

    def do_prepare(
        self, settings: dict[str, Any], artifact: str, cache: str, weight_format: str
    ) -> tuple[Message, list[Any]]:
        chosen = Settings.from_json(settings)
        backend = backends.backend(chosen.engine)
        if not backend.classifies and classifier.labels_in(Artifact.open(artifact)):
            raise EngineError(f"{backend.name} runs no classifiers of texts; openvino and transformers do")
        backend.check(chosen)
        path = backend.prepare(Path(artifact), weight_format, Path(cache))
        return {"path": str(path)}, []

    def do_load(
        self, settings: dict[str, Any], path: str, pool: list[int] | None = None, draft: str | None = None
    ) -> tuple[Message, list[Any]]:
        chosen = Settings.from_json(settings)
        confine(chosen.cores, chosen.threads)  # threads that the engine starts stay where this one is
        backend: Backend = backends.backend(chosen.engine)(chosen)
        if pool is not None and backend.shares:
            backend.reserve(*pool)
        backend.load(Path(path))
        self._decoder = Decoder(backend, Drafter.load(backend, Path(draft)) if draft else None)
        version = type(backend).version()
        info = {**backend.info(), **({"labels": list(backend.labels)} if backend.labels else {})}
        if backend.pooling:
            info.update(width=backend.vocab_size, pooling=list(backend.pooling.modes))
        return {"info": info, "version": version, "vocab_size": backend.vocab_size}, []

    def do_generate(self, requests: list[dict[str, Any]], stream: bool) -> tuple[Message, list[Any]]:
        decoder = self._asked_to("write")
        parsed = [Request(**{**r, "stop_ids": frozenset(r["stop_ids"])}) for r in requests]

        def on_token(index: int, token: int) -> None:
            send(self._writer, {"token": [index, token]})

        completions = decoder.generate(parsed, on_token if stream else None)
        return {"completions": [asdict(c) for c in completions], "steps": self._steps()}, []

    def do_session(self, options: dict[str, Any], artifact: str) -> tuple[Message, list[Any]]:
        decoder = self._asked_to("write", "embed" if self._loaded.backend.pooling else "write text")
        chosen, place = SessionOptions(**options), Path(artifact)
        Session(decoder.backend, self._reader, self._writer, chosen, place, decoder.drafter).run()
        return {}, []

    def do_score(self, pairs: list[tuple[list[int], list[int]]]) -> tuple[Message, list[Any]]:
        scores = self._asked_to("score text").score(pairs)
        return {"scores": scores, "steps": self._steps()}, []

    def do_distributions(self, tokens: list[int], decoded: int = 0) -> tuple[Message, list[Any]]:
        array = self._asked_to("predict tokens").distributions(tokens, decoded)
        return {"steps": self._steps()}, [array]

    def do_classify(self, texts: list[list[int]]) -> tuple[Message, list[Any]]:
        array = self._asked_to("classify", "classify").classify(texts)
        return {"steps": self._steps()}, [array]

    def do_embed(self, texts: list[list[int]]) -> tuple[Message, list[Any]]:
        array = self._asked_to("embed", "embed").embed(texts)
        return {"steps": self._steps()}, [array]


def _prefer_to_be_killed() -> None:
    """When memory runs out the kernel should take the worker, not the search that watches it."""
    with suppress(OSError):  # not Linux, or not permitted: the kernel decides as it always does
        Path("/proc/self/oom_score_adj").write_text("800")


def _end_with_parent(reader: int) -> None:
    """Wait for the parent's end of the pipe to close, and stop whatever is being computed for nobody."""
    parent = select.poll()
    parent.register(reader, 0)  # nothing but its hanging up
    parent.poll()
    os._exit(0)


def main() -> None:
    reader, writer = (int(fd) for fd in sys.argv[1:])
    _prefer_to_be_killed()
    threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like; the pipe is ours
    with os.fdopen(reader, "rb") as incoming, os.fdopen(writer, "wb") as outgoing:
        Worker(incoming, outgoing).serve()


if __name__ == "__main__":
    with suppress(BrokenPipeError, EOFError, KeyboardInterrupt):  # the parent is gone; so are we
        main()
