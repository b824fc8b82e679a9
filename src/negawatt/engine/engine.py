"""`Engine`: one artifact under one `Settings`, running in a worker process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.engine import backends, wire
from negawatt.engine.answers import Classification, Embedding, Generation, Usage
from negawatt.engine.decode import Completion, Request, Step, TokenCallback
from negawatt.engine.draft_model import DraftModel
from negawatt.engine.host import available_memory_bytes
from negawatt.engine.process import WorkerProcess
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
        draft: the small model that proposes, where the settings name one (after `open`).
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
        self.cache = cache or usual_cache(artifact, settings)
        self._prepared, self._session = prepared, session
        self.info: dict[str, Any] = {}
        self.version = ""
        self.prepare_usage = self.load_usage = self.last_usage = Usage(0.0, 0.0, 0.0, 0)
        self._earlier_cpu_s = 0.0  # of a worker that made the weights and was ended
        self.last_steps: list[Step] = []
        self.draft: DraftModel | None = None
        self._call_deadline_s, self._load_deadline_s = call_deadline_s, load_deadline_s
        self._worker = WorkerProcess(settings.engine)
        self._hold = Hold()
        backends.backend(settings.engine).check(settings)

    # -- life ------------------------------------------------------------------------------------

    def open(self) -> Engine:
        """Start the worker, make the weights if they are not in the cache, and load them.

        Raises:
            EngineError: the engine refuses, or the model would not fit in memory.
            WorkerDied: the worker died or hung.
        """
        settings = self.settings
        if settings.draft is not None:
            formats = backends.backend(settings.engine).weight_formats
            self.draft = DraftModel.open(settings.draft, formats, self.artifact)
        self._refuse_too_large()
        check(settings.limits)
        try:
            self._worker.start()
            self._prepare()
            self._hold = hold(settings.limits)  # making the weights is not limited
            request: wire.Message = {
                "do": "load", "path": str(self.model_path), "settings": settings.to_json(),
                "draft": None if self.draft is None else str(self.draft_path),
            }  # fmt: skip
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

    def _prepare(self) -> None:
        """Make the weights, a draft's too, and leave a worker that has not spent anything on it."""
        self.prepare_usage, self._earlier_cpu_s = Usage(0.0, 0.0, 0.0, 0), 0.0
        if self._prepared is not None:
            self.model_path = self._prepared
        else:
            self.model_path = self._made(self.artifact, self.settings.weight_format, self.cache)
        if self.draft is not None:
            model = self.draft.artifact
            self.draft_path = self._made(model, self.draft.weight_format, usual_cache(model, self.settings))
        kind, elsewhere = backends.backend(self.settings.engine), self.settings.device != "cpu"
        if self.prepare_usage.cpu_s > FRESH_WORKER_AFTER_CPU_S or (elsewhere and kind.has_builds):
            self.close()  # what it took to make the weights must not count as what it takes to run them
            self._earlier_cpu_s = self.spent_cpu_s
            self._worker.start()
            self.last_usage = Usage(0.0, 0.0, 0.0, 0)

    def _made(self, artifact: Artifact, weight_format: str, cache: Path) -> Path:
        """What the engine loads of a model, made unless it is in `cache`."""
        cache.mkdir(parents=True, exist_ok=True)
        request = {"do": "prepare", "artifact": str(artifact.path), "cache": str(cache)}
        settings = self.settings.to_json()
        answer, _ = self._call(
            {**request, "settings": settings, "weight_format": weight_format}, self._load_deadline_s
        )
        self.prepare_usage = self.prepare_usage.and_then(Usage(**answer["usage"]))
        return Path(answer["path"])

    def _refuse_too_large(self) -> None:
        available = available_memory_bytes()
        models = [self.artifact] if self.draft is None else [self.artifact, self.draft.artifact]
        needed = sum(model.weight_bytes for model in models)
        if available is not None and needed > available:
            names = " and ".join(model.name for model in models)
            raise EngineError(
                f"{names} hold{'s' * (len(models) == 1)} {needed / 1e9:.1f} GB of weights, but "
                f"{available / 1e9:.1f} GB of memory are free; choose a smaller model or free memory"
            )

    def close(self) -> None:
        """End the worker and free its memory; harmless when it has ended already."""
        with self._hold:
            self._worker.close()

    def __enter__(self) -> Engine:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()  # whatever it is doing, nobody waits for it any more
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the worker, for a meter.

        Raises:
            EngineError: the engine is not open.
        """
        if (pid := self._worker.pid) is None:
            raise EngineError("the engine is not open")
        return pid

    @property
    def whole_cpu_s(self) -> float | None:
        """CPU seconds of the worker in all, see `WorkerProcess`."""
        return self._worker.whole_cpu_s

    @property
    def spent_cpu_s(self) -> float:
        """CPU seconds since it was opened, the weights' making included: up to the latest call, and in all
        once the worker has ended, of one that died too.
        """
        return self._earlier_cpu_s + (self.whole_cpu_s or self.last_usage.total_cpu_s)

    def begin_session(self) -> tuple[IO[bytes], IO[bytes]]:
        """Hand the worker over to continuous batching; see `negawatt.engine.session` for what is spoken.

        Returns:
            The streams to read from and write to. The engine answers nothing else until it is closed.
        """
        if self._worker.pid is None or self._session is None:
            raise EngineError("the engine is not open, or was opened without a session")
        place = str(self.artifact.path)
        message = {"do": "session", "options": asdict(self._session), "artifact": place}
        return self._worker.hand_over(message)

    def kill(self) -> None:
        """End the worker at once, whatever it is doing; its streams then end."""
        self._worker.kill()

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
        try:
            answer, arrays = self._worker.call(message, deadline_s, on_token)
        except WorkerDied:
            self.close()  # it is closed already; what the machine was held to is not
            raise
        self.last_usage = Usage(**answer["usage"])
        return answer, arrays

    def why_died(self) -> NegawattError:
        """Why the worker ended, as an error to raise; the engine is closed."""
        reason = self._worker.why_died()
        self.close()
        return reason


def usual_cache(artifact: Artifact, settings: Settings) -> Path:
    """Where an engine keeps what it makes of an artifact."""
    return home() / "cache" / artifact.sha256[:16] / settings.engine
