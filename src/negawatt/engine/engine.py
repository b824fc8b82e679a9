"""`Engine`: one artifact under one `Settings`, running in a worker process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from negawatt import errors
from negawatt.artifact import Artifact
from negawatt.engine import backends, wire
from negawatt.engine.answers import Classification, Embedding, Generation, Usage
from negawatt.engine.decode import Completion, Request, Step, TokenCallback
from negawatt.engine.host import available_memory_bytes, cpu_s_of, has_ended, last_line, worker_environment
from negawatt.engine.session import SessionOptions
from negawatt.engine.settings import Settings
from negawatt.errors import EngineError, NegawattError, WorkerDied
from negawatt.home import home
from negawatt.limits.hold import Hold, check, hold

LOAD_DEADLINE_S = 900.0
"""Preparing weights (quantizing, compressing) and loading them."""
CALL_DEADLINE_S = 600.0
"""One call of generate, score or distributions, from its last sign of life."""
FRESH_WORKER_AFTER_CPU_S = 0.5
"""A worker that spent more than this on preparing weights is replaced by a fresh one."""


class Engine:
    """Runs an artifact under given settings; a context manager.

    ::

        with Engine(Artifact.open("smollm2-135m-instruct"), Settings(engine="llamacpp")) as engine:
            tokens = engine.artifact.tokenizer.chat([{"role": "user", "content": "Hello"}])
            answer = engine.generate([Request(tokens, max_new_tokens=32)]).completions[0]

    The engine's library lives in the worker. When that dies (an illegal instruction, no memory) or
    does not answer within its deadline, the call raises `WorkerDied` with the reason; memory is
    freed, and this process lives on.

    Args:
        cache: where made weights are kept; a folder of the artifact's own if absent.
        prepared: what to load as it is, made by this engine before; nothing is made then.
        session: what `begin_session` will begin; engines that can then load with room for it.

    Attributes:
        artifact, settings: what runs, and how.
        info: what really runs: build, kernels (after `open`).
        version: of the underlying library (after `open`).
        prepare_usage, load_usage: what making and loading the weights cost (after `open`).
        last_usage: of the latest call, with the worker's peak memory so far.
        whole_cpu_s: CPU seconds of the worker in all, once it has ended; None before, and where the system
            does not tell.
        last_steps: the engine's calls of the latest score.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        *,
        cache: Path | None = None,
        prepared: Path | None = None,
        session: SessionOptions | None = None,
        call_deadline_s: float = CALL_DEADLINE_S,
        load_deadline_s: float = LOAD_DEADLINE_S,
    ) -> None:
        self.artifact, self.settings = artifact, settings
        self.cache = cache or home() / "cache" / artifact.sha256[:16] / settings.engine
        self._prepared, self._session = prepared, session
        self.info: dict[str, Any] = {}
        self.version = ""
        self.prepare_usage = self.load_usage = self.last_usage = Usage(0.0, 0.0, 0.0, 0)
        self.last_steps: list[Step] = []
        self.whole_cpu_s: float | None = None
        self._call_deadline_s, self._load_deadline_s = call_deadline_s, load_deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._hold = Hold()
        backends.backend(settings.engine).check(settings)

    # -- life ------------------------------------------------------------------------------------

    def open(self) -> Engine:
        """Start the worker, make the weights if they are not in the cache, and load them.

        Raises:
            EngineError: the engine refuses, or the model would not fit in memory.
            WorkerDied: the worker died or hung.
        """
        self._refuse_too_large()
        check(self.settings.limits)
        try:
            self._start()
            settings = self.settings.to_json()
            self.model_path = self._prepared or self._prepare(settings)
            self._hold = hold(self.settings.limits)  # making the weights is not limited
            request: wire.Message = {"do": "load", "path": str(self.model_path), "settings": settings}
            if self._session is not None:
                request["pool"] = [self._session.slots, self._session.capacity]
            answer, _ = self._call(request, self._load_deadline_s)
            self.info, self.version = {**answer["info"], **self._hold.info}, answer["version"]
            self.load_usage = Usage(**answer["usage"])
        except OSError as exc:
            self.close()
            raise EngineError(f"cannot start an engine: {exc.strerror or exc}") from exc
        except BaseException:
            self.close()
            raise
        return self

    def _prepare(self, settings: dict[str, Any]) -> Path:
        """Make the weights, and leave a worker that has not spent anything on it."""
        self.cache.mkdir(parents=True, exist_ok=True)
        request = {"do": "prepare", "artifact": str(self.artifact.path), "cache": str(self.cache)}
        answer, _ = self._call({**request, "settings": settings}, self._load_deadline_s)
        self.prepare_usage = Usage(**answer["usage"])
        if self.prepare_usage.cpu_s > FRESH_WORKER_AFTER_CPU_S:
            self.close()  # what it took to make the weights must not count as what it takes to run them
            self._start()
        return Path(answer["path"])

    def _refuse_too_large(self) -> None:
        available = available_memory_bytes()
        needed = self.artifact.weight_bytes
        if available is not None and needed > available:
            raise EngineError(
                f"{self.artifact.name} holds {needed / 1e9:.1f} GB of weights, but {available / 1e9:.1f} GB "
                "of memory are free; choose a smaller model or free memory"
            )

    def _start(self) -> None:
        to_worker_read, to_worker_write = os.pipe()
        from_worker_read, from_worker_write = os.pipe()
        self.whole_cpu_s = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        ends = map(str, (to_worker_read, from_worker_write))
        command = [sys.executable, "-m", "negawatt.engine.worker", *ends]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(to_worker_read, from_worker_write),
                start_new_session=True,  # Ctrl-C is for the parent, which closes the worker in order
                env=worker_environment(),
            )
        finally:
            os.close(to_worker_read)
            os.close(from_worker_write)
        self._writer = os.fdopen(to_worker_write, "wb")
        self._reader = os.fdopen(from_worker_read, "rb", buffering=0)

    def close(self) -> None:
        """End the worker and free its memory; harmless when it has ended already."""
        if self._process is None:
            return
        with self._hold:
            for stream in (self._writer, self._reader):
                with suppress(BrokenPipeError):  # the worker ended first; nothing unsent matters now
                    stream.close()
            self._end(2.0)
            if self._log is not None:
                self._log.close()
            self._process = None

    def _end(self, most_s: float) -> int:
        """Wait for the worker to end, kill it if it does not, and note what it spent; its exit code."""
        assert self._process is not None
        end = time.monotonic() + most_s
        while not has_ended(self._process):
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.002)
        if self._process.returncode is None:  # known until it is waited for
            self.whole_cpu_s = cpu_s_of(self._process.pid)
        return self._process.wait()

    def __enter__(self) -> Engine:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._process is not None:
            self._process.kill()  # whatever it is doing, nobody waits for it any more
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the worker, for a meter.

        Raises:
            EngineError: the engine is not open.
        """
        if self._process is None:
            raise EngineError("the engine is not open")
        return self._process.pid

    def begin_session(self) -> tuple[IO[bytes], IO[bytes]]:
        """Hand the worker over to continuous batching; see `negawatt.engine.session` for what is spoken.

        Returns:
            The streams to read from and write to. The engine answers nothing else until it is closed.
        """
        if self._process is None or self._session is None:
            raise EngineError("the engine is not open, or was opened without a session")
        place = str(self.artifact.path)
        wire.send(self._writer, {"do": "session", "options": asdict(self._session), "artifact": place})
        return self._reader, self._writer

    def kill(self) -> None:
        """End the worker at once, whatever it is doing; its streams then end."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)  # Popen's own would wait for one that has ended

    # -- verbs -----------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], on_token: TokenCallback | None = None) -> Generation:
        """Answer requests, at most ``settings.batch`` at once.

        Args:
            requests: prompts as token ids with their limits.
            on_token: called as tokens are produced, with the request's index and the token id.

        Raises:
            EngineError: a request does not fit, or the engine fails.
            WorkerDied: the worker died or hung.
        """
        for request in requests:
            length = len(request.tokens) + request.max_new_tokens
            if not request.tokens or request.max_new_tokens < 1:
                raise EngineError("a request needs at least one prompt token and one token to generate")
            if length > self.settings.max_context:
                raise EngineError(
                    f"prompt and answer need {length} tokens, but max_context is {self.settings.max_context}"
                )
        sent = [{**asdict(r), "tokens": list(r.tokens), "stop_ids": sorted(r.stop_ids)} for r in requests]
        message = {"do": "generate", "requests": sent, "stream": on_token is not None}
        answer, _ = self._call(message, self._call_deadline_s, on_token)
        completions = [Completion(**c) for c in answer["completions"]]
        return Generation(completions, [Step(**s) for s in answer["steps"]], Usage(**answer["usage"]))

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[list[tuple[list[float], bool]], Usage]:
        """Log-probabilities in nats of continuations, see `negawatt.engine.decode.Decoder.score`.

        Raises:
            EngineError: a pair is empty or does not fit.
            WorkerDied: the worker died or hung.
        """
        for context, continuation in pairs:
            if not context or not continuation:
                raise EngineError("scoring needs at least one token of context and one of continuation")
            if len(context) + len(continuation) > self.settings.max_context:
                raise EngineError(
                    f"context and continuation hold {len(context) + len(continuation)} tokens, "
                    f"but max_context is {self.settings.max_context}"
                )
        message = {"do": "score", "pairs": [[list(context), list(rest)] for context, rest in pairs]}
        answer, _ = self._call(message, self._call_deadline_s)
        self.last_steps = [Step(**s) for s in answer["steps"]]
        scores = [([float(x) for x in values], bool(greedy)) for values, greedy in answer["scores"]]
        return scores, Usage(**answer["usage"])

    def distributions(self, tokens: Sequence[int], decoded: int = 0) -> NDArray[np.float32]:
        """Log-probabilities after each token, shape ``(len(tokens), vocab_size)``, in nats.

        Args:
            tokens: one text.
            decoded: how many of the last tokens are fed one at a time, as generation does; at least one
                token comes before them.
        """
        if not 0 < len(tokens) <= self.settings.max_context:
            raise EngineError(
                f"between 1 and {self.settings.max_context} tokens are needed, not {len(tokens)}"
            )
        if not 0 <= decoded < len(tokens):
            raise EngineError(
                f"of {len(tokens)} tokens from 0 to {len(tokens) - 1} can be decoded, not {decoded}"
            )
        message = {"do": "distributions", "tokens": list(tokens), "decoded": decoded}
        _, arrays = self._call(message, self._call_deadline_s)
        return arrays[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model tells apart, where it is a classifier; empty where it writes text."""
        return tuple(self.info.get("labels", ()))

    def classify(self, texts: Sequence[Sequence[int]]) -> Classification:
        """Label texts, given as token ids, at most ``settings.batch`` at once.

        Raises:
            EngineError: the model is no classifier, or a text is empty or does not fit.
            WorkerDied: the worker died or hung.
        """
        answer, rows = self._of_texts("classify", texts)
        return Classification(rows, *answer)

    @property
    def width(self) -> int | None:
        """Length of the vectors of a model that embeds texts; None where it does not."""
        return self.info.get("width")

    def embed(self, texts: Sequence[Sequence[int]]) -> Embedding:
        """The vectors of texts, given as token ids, at most ``settings.batch`` at once.

        Raises:
            EngineError: the model embeds nothing, or a text is empty or does not fit.
            WorkerDied: the worker died or hung.
        """
        answer, rows = self._of_texts("embed", texts)
        return Embedding(rows, *answer)

    def _of_texts(
        self, verb: str, texts: Sequence[Sequence[int]]
    ) -> tuple[tuple[list[Step], Usage], NDArray[np.float32]]:
        """One row of numbers for each text, with the steps and their cost."""
        longest = max(map(len, texts), default=0)
        if not texts or min(map(len, texts)) < 1:
            raise EngineError(f"to {verb} needs at least one text, and at least one token of each")
        if longest > self.settings.max_context:
            raise EngineError(
                f"a text holds {longest} tokens, but max_context is {self.settings.max_context}"
            )
        message = {"do": verb, "texts": [list(text) for text in texts]}
        answer, arrays = self._call(message, self._call_deadline_s)
        return ([Step(**s) for s in answer["steps"]], Usage(**answer["usage"])), arrays[0]

    # -- talking to the worker -------------------------------------------------------------------

    def _call(
        self, message: wire.Message, deadline_s: float, on_token: TokenCallback | None = None
    ) -> tuple[wire.Message, list[NDArray[Any]]]:
        if self._process is None:
            raise EngineError("the engine is not open")
        try:
            wire.send(self._writer, message)
            while True:
                self._wait_readable(deadline_s, str(message["do"]))
                frame = wire.receive(self._reader)
                if frame is None:
                    raise self.why_died()
                answer, arrays = frame
                if "token" not in answer:
                    break
                if on_token is not None:
                    on_token(*answer["token"])
        except (BrokenPipeError, EOFError, ValueError) as exc:
            raise self.why_died() from exc
        if "error" in answer:
            kind = getattr(errors, answer["kind"], EngineError)
            raise kind(answer["error"])
        self.last_usage = Usage(**answer["usage"])
        return answer, arrays

    def _wait_readable(self, deadline_s: float, what: str) -> None:
        end = time.monotonic() + deadline_s
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, min(1.0, end - time.monotonic())))
            if ready:
                return
            if time.monotonic() >= end:
                assert self._process is not None
                self._process.kill()
                self.close()
                raise WorkerDied(
                    f"the {self.settings.engine} worker gave no answer to {what} in {deadline_s:g} s"
                )

    def why_died(self) -> NegawattError:
        """Why the worker ended, as an error to raise; the engine is closed."""
        assert self._process is not None
        code = self._end(5.0)
        said = "" if self._log is None else last_line(self._log)
        self.close()
        if code == -signal.SIGKILL:
            reason = "was killed, most likely because memory ran out"
        elif code < 0:
            reason = f"died of {signal.Signals(-code).name} ({signal.strsignal(-code)})"
        else:
            reason = f"ended with code {code}"
        return WorkerDied(f"the {self.settings.engine} worker {reason}" + (f": {said}" if said else ""))
