"""`Cascade`: the small model answers, and the large one where the small one was not sure enough."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.errors import UsageError
from negawatt.serve.admission import Caller, Refused
from negawatt.serve.ask import Ask
from negawatt.serve.model import ServedModel
from negawatt.serve.task import Task

if TYPE_CHECKING:
    from negawatt.serve.server import Gone, Server


@dataclass(frozen=True, slots=True)
class CascadeConfig:
    """A ``[[cascade]]`` of the configuration.

    Attributes:
        name: by which clients ask for it.
        small, large: names of models.
        threshold: least mean log-probability of a token, in nats, with which the small model's answer is
            handed out. It holds for the work it was found on.
        calibration: file of ``negawatt cascade calibrate`` that holds one, with its proof.
    """

    name: str
    small: str
    large: str
    threshold: float | None = None
    calibration: str | None = None


@dataclass(frozen=True, slots=True)
class Cascade:
    """As `CascadeConfig`, with its threshold."""

    name: str
    small: str
    large: str
    threshold: float

    @classmethod
    def of(cls, config: CascadeConfig, small: ServedModel, large: ServedModel) -> Cascade:
        """The cascade that a configuration describes.

        Raises:
            UsageError: there is no threshold, or one that was found with other models.
        """
        if (config.threshold is None) == (config.calibration is None):
            raise UsageError(
                f"the cascade {config.name} needs a calibration (negawatt cascade calibrate) or a threshold"
            )
        if small.name == large.name or small.pooling is not None or large.pooling is not None:
            raise UsageError(f"the cascade {config.name} needs two models that write text")
        threshold = config.threshold
        if config.calibration is not None:
            threshold = _calibrated(Path(config.calibration).expanduser(), small, large)
        assert threshold is not None
        if math.isnan(threshold) or threshold > 0:
            raise UsageError(f"a threshold is a log-probability, at most 0, not {threshold}")
        return cls(config.name, small.name, large.name, threshold)

    def to_json(self) -> dict[str, Any]:
        return {"small": self.small, "large": self.large, "threshold": self.threshold}


def identity(model: ServedModel) -> dict[str, Any]:
    """What a calibration holds for: the model's content and the arithmetic it runs in."""
    return {"artifact": model.artifact.sha256, "arithmetic": list(model.options.settings.arithmetic)}


def _calibrated(file: Path, small: ServedModel, large: ServedModel) -> float:
    try:
        data = json.loads(file.read_text("utf-8"))
        threshold, found = float(data["threshold"]), (data["small"]["model"], data["large"]["model"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{file} is no calibration of a cascade: {exc}") from exc
    if found != (identity(small), identity(large)):
        raise UsageError(f"{file} was found with other models or settings; calibrate the cascade again")
    return threshold


async def climb(
    server: Server, cascade: Cascade, caller: Caller, ask: Ask, gone: Gone
) -> tuple[ServedModel, Task]:
    """Ask the small model, and the large one if need be; the answer's task may be settled already.

    What both may cost at most is held before either is asked. Where the small model cannot be asked (its
    context is too short, it has no place for tools, it fails), the large one is.

    Raises:
        Refused: there is no budget for it, the client has left, or its time is up.
    """
    large = await server.prepare(caller, replace(ask, model=cascade.large))
    try:
        if large.model.name == cascade.small:  # near a budget's end the smaller model answers whatever it is
            return large.model, server.enter(large, caller, ask)
        task = await _tried(server, cascade, caller, ask, gone)
    except BaseException:
        large.reservation.release()
        raise
    attempts = () if task is None or task.receipt is None else (task.receipt,)
    if task is not None and task.receipt is not None and task.receipt.outcome == "completed":
        large.reservation.release()
        return server.models[task.receipt.model], task
    return large.model, server.enter(large, caller, ask, attempts=attempts)


async def _tried(server: Server, cascade: Cascade, caller: Caller, ask: Ask, gone: Gone) -> Task | None:
    """The small model's answer, good enough or not; None where it could not be asked."""
    sampling = replace(ask.sampling, log_probs=ask.sampling.log_probs or 0)
    try:
        small = await server.prepare(
            caller, replace(ask, model=cascade.small, sampling=sampling), follows=True
        )
    except Refused as exc:
        if exc.status in (400, 503):
            return None
        raise
    task = server.enter(small, caller, replace(ask, sampling=sampling), least_confidence=cascade.threshold)
    try:
        await server.finish(small.model, task, gone)
    except Refused as exc:
        if exc.code != "engine_failed":
            raise
    return task
