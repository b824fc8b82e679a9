"""`Workshop`: where the weights of candidates come from: models as they are, or made smaller by passes.

What passes make is kept in ``NEGAWATT_HOME/cache/made`` by content: the model's hash, the passes so far,
the seed and the hash of the text. A prefix of passes that two candidates share is made once, in this search
or any later one, and a call that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from negawatt import __version__, errors
from negawatt.artifact import Artifact
from negawatt.artifact.shape import ModelShape
from negawatt.catalog.lock import locked
from negawatt.engine import Engine
from negawatt.errors import ArtifactError, EngineError, MissingDependency, NegawattError, UsageError
from negawatt.home import home, write_json
from negawatt.profiling.cascade import Cascade, Runner
from negawatt.tuning.candidate import Candidate
from negawatt.workload import (
    ChooseItem,
    PerplexityItem,
    QualityItem,
    RetrieveItem,
    TrafficItem,
    Workload,
)
from negawatt.workload.items import prompt_text
from negawatt.workload.writer import write_workload

WINDOWS, LENGTH = 32, 256
"""Of the text that passes are calibrated on; shorter where the workload holds little."""
FEWEST_WINDOWS = 6
JUDGED_ON = 1
"""Windows that each pass is judged on for its own record; the search judges by the workload instead."""

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Making:
    """One pass applied for the search.

    Attributes:
        passes: up to and with the one that was applied.
        model: as in `Candidate`.
        cpu_s, duration_s: what it took.
        error: why it gave nothing; empty where it gave an artifact.
    """

    passes: tuple[str, ...]
    model: str
    cpu_s: float
    duration_s: float
    error: str = ""

    def to_record(self) -> dict[str, Any]:
        """A ``making`` record of the run."""
        return {
            "passes": list(self.passes),
            "model": self.model or None,
            "cpu_s_spent": self.cpu_s,
            "duration_s": self.duration_s,
            "error": self.error or None,
        }


class Workshop:
    """Gives the artifact that a candidate runs.

    Args:
        artifact: the model that the baseline runs.
        others: further models by name.
        usage: the part of the workload that passes may see: nothing of what is kept for the proof.
        seed: of the passes.
        told: called with everything made, once.
        tick: told what goes on.
    """

    def __init__(
        self,
        artifact: Artifact,
        others: Mapping[str, Artifact] | None = None,
        *,
        usage: Workload | None = None,
        seed: int = 0,
        told: Callable[[Making], None] = lambda making: None,
        tick: Tick = lambda text: None,
    ) -> None:
        self.models = {"": artifact, **(others or {})}
        self.usage, self.seed, self._told, self._tick = usage, seed, told, tick
        self._made: dict[tuple[str, tuple[str, ...]], Artifact] = {}
        self._refused: dict[tuple[str, tuple[str, ...]], NegawattError] = {}

    @property
    def base(self) -> Artifact:
        """The model that the baseline runs."""
        return self.models[""]

    @property
    def shapes(self) -> dict[str, ModelShape]:
        """Dimensions of the models that state them, by name."""
        found = {}
        for name, model in self.models.items():
            with suppress(ArtifactError):
                found[name] = model.shape
        return found

    def artifact(self, candidate: Candidate) -> Artifact:
        """The weights of a candidate, made now if they were not before.

        Raises:
            UsageError: its model is none of those searched, or a pass is unknown.
            EngineError: a pass cannot be applied to what comes in, or its process died.
        """
        if candidate.model not in self.models:
            raise UsageError(f"the search has no model {candidate.model!r}")
        found = self.models[candidate.model]
        for count in range(len(candidate.passes)):
            found = self._step(found, candidate.model, candidate.passes[: count + 1])
        return found

    def engine(self, candidate: Candidate, prepared: Path | None = None) -> Engine:
        """An engine that runs it, not open yet; its limits are held by `negawatt.tuning.limited`.

        Raises:
            EngineError: as for `artifact`.
        """
        settings = candidate.settings.without_limits()
        return Engine(self.artifact(candidate), settings, prepared=prepared)

    def runner(self, candidate: Candidate) -> Runner:
        """An engine, or for a cascade both of its.

        Raises:
            EngineError: as for `artifact`.
        """
        if candidate.escalation is None:
            return self.engine(candidate)
        small, large = map(self.engine, candidate.parts)
        metrics = self.usage.metrics if self.usage else {}
        return Cascade(small, large, candidate.escalation.threshold, metrics)

    def is_made(self, candidate: Candidate) -> bool:
        """Whether its weights are there already."""
        source: Artifact | None = self.models.get(candidate.model)
        for count in range(len(candidate.passes)):
            if source is None:
                return False
            place = self._place(source, candidate.passes[count]) / "artifact"
            source = Artifact.open(place) if place.is_dir() else None
        return source is not None

    # -- making ----------------------------------------------------------------------------------

    def _step(self, source: Artifact, model: str, passes: tuple[str, ...]) -> Artifact:
        """What the last of the passes makes of `source`, which those before it made."""
        key = (model, passes)
        if key in self._refused:
            raise self._refused[key]
        if key not in self._made:
            place = self._place(source, passes[-1])
            with locked(place / "lock", lambda done, total, text: self._tick(text)):
                if not (place / "artifact").is_dir():
                    self._make(source, key, place)
            self._made[key] = Artifact.open(place / "artifact")
        return self._made[key]

    def _place(self, source: Artifact, step: str) -> Path:
        """The folder of what a pass makes of a source: by content, so that equal steps share it."""
        text = self.usage.hash if self.usage else ""
        parts = [source.sha256, step, str(self.seed), text, f"{WINDOWS} {LENGTH}", __version__]
        identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        return home() / "cache" / "made" / identity

    def _make(self, source: Artifact, key: tuple[str, tuple[str, ...]], place: Path) -> None:
        model, passes = key
        job = {
            "model": str(source.path), "passes": [passes[-1]], "text": self._text(place), "seed": self.seed,
            "windows": WINDOWS, "heldout": JUDGED_ON, "length": self._length(source),
            "output": str(place / "artifact"),
        }  # fmt: skip
        started, error = time.monotonic(), ""
        worker = _PassWorker(job, lambda text: self._tick(f"making {' + '.join(passes)}: {text}"))
        try:
            worker.run()
        except MissingDependency:
            raise
        except NegawattError as exc:
            error = str(exc)
            refused = exc if isinstance(exc, EngineError) else EngineError(error)
            self._refused[key] = refused
            raise refused from exc
        finally:
            lasted_s = time.monotonic() - started
            self._told(Making(passes, model, worker.cpu_s, lasted_s, error))
        with suppress(ArtifactError):  # what is known of it serves later searches
            cost = {"pass": passes[-1].partition(":")[0], "cpu_s": worker.cpu_s, "duration_s": lasted_s}
            write_json(place / "cost.json", {**cost, "mparams": source.shape.n_params / 1e6})

    def _length(self, source: Artifact) -> int:
        """Tokens in a window, so that the text holds several; passes see half of a quality set."""
        if self.usage is None:
            return LENGTH
        texts = map(_asked, (*self.usage.traffic, *self.usage.quality))
        n_tokens = sum(len(source.tokenizer.encode(text)) for text in texts)
        return max(16, min(LENGTH, n_tokens // (2 * FEWEST_WINDOWS)))

    def _text(self, place: Path) -> str:
        """Reference of the text for the passes."""
        if self.usage is None:
            return "self"
        folder = place.parent / f"usage-{self.usage.hash[:24]}"
        if not folder.is_dir():
            write_workload(self.usage, folder)
        return str(folder)


def _asked(item: TrafficItem | QualityItem) -> str:
    match item:
        case PerplexityItem():
            return item.text
        case ChooseItem():
            return prompt_text(item.context)
        case RetrieveItem():
            return item.query
        case _:
            return prompt_text(item.prompt)


class _PassWorker:
    """A call of `negawatt.tuning.pass_worker`.

    Attributes:
        cpu_s: what it used, known when `run` has ended, however it ended.
    """

    def __init__(self, job: Mapping[str, Any], tick: Tick) -> None:
        self._job, self._tick = job, tick
        self.cpu_s = 0.0

    def run(self) -> None:
        """Raises:
        NegawattError: what `compress` raised.
        EngineError: the process died.
        """
        command: Sequence[str] = [sys.executable, "-m", "negawatt.tuning.pass_worker"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )  # fmt: skip
        answer: dict[str, Any] = {}
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(self._job).encode() + b"\n")
            process.stdin.flush()  # and left open: its end tells the process that nobody waits any more
            answer = self._heard(process.stdout)
        except BrokenPipeError:
            pass  # it died at once; the status says of what
        except BaseException:
            process.kill()
            raise
        finally:
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_s = usage.ru_utime + usage.ru_stime
        if "error" in answer:
            raise getattr(errors, answer["kind"], NegawattError)(answer["error"])
        if "made" not in answer:
            code = process.returncode
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise EngineError(f"the process that applies {self._job['passes'][0]} {how}")

    def _heard(self, lines: IO[bytes]) -> dict[str, Any]:
        """Pass progress on; the last line is the answer."""
        with lines:
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "progress" not in message:
                    return message
                self._tick(str(message["progress"]))
        return {}
