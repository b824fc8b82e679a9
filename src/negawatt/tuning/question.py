"""`Question`: what a search is asked, so that an unfinished run is only continued by the same question."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.database import without_secrets
from negawatt.engine import Settings
from negawatt.errors import RunError, UsageError
from negawatt.meter import fingerprint, station
from negawatt.profiling import about
from negawatt.run import Run, is_run, new_path
from negawatt.store import Store
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.objectives import ENERGY
from negawatt.tuning.space import Space
from negawatt.tuning.verdict import Constraints
from negawatt.workload import Workload


@dataclass(frozen=True)
class Question:
    """What is asked of a search; two questions that are equal may continue one another's run."""

    artifact: str
    workload: str
    baseline: Candidate
    constraints: Constraints
    space: Space
    seed: int
    models: Mapping[str, str] = field(default_factory=dict)
    """Hash of the content of each further model, by name."""
    strategy: str = "default"
    objectives: tuple[str, ...] = (ENERGY,)

    def __post_init__(self) -> None:
        if limits := self.baseline.settings.limits:
            raise UsageError(
                f"the baseline runs with {limits}, and savings are told against a machine without limits; "
                "name the same without them"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact_sha256": self.artifact,
            "workload_hash": self.workload,
            "baseline": self.baseline.settings.to_json(),
            "constraints": self.constraints.to_json(),
            "space": self.space.to_json(),
            "seed": self.seed,
            "models_sha256": dict(self.models),
            "strategy": self.strategy,
            **({"objectives": list(self.objectives)} if len(self.objectives) > 1 else {}),
        }


def cost_of(path: Path | None, here: Cost) -> Cost:
    """What a search into a folder counts: what it began with, or what can be counted here."""
    if path is None or not is_run(path):
        return here
    return Cost.from_json(Run.open(path).manifest.get("cost"))


def open_run(
    path: Path | None,
    question: Question,
    artifact: Artifact,
    workload: Workload,
    command: Sequence[str],
    store: str | None = None,
    cost: Cost = CPU_SECONDS,
) -> Run:
    """A new run for a question, or the unfinished one of the same question at `path`; locked.

    Args:
        path: the folder; by default a new one in Negawatt's home.
        command: what the user typed; secrets in it are left out.
        store: URL of a database that the run is kept in besides, under the name of the folder. What it has
            of a run of that name is laid out in the folder.
        cost: what a new search counts; one that was begun goes on by what it has counted so far.

    Raises:
        RunError: the folder holds something else, or a run that this machine or version cannot continue, or
            another process writes to it.
    """
    if store is None:
        run = _unfinished(path, question) if path is not None and is_run(path) else None
        if run is not None and (kept_in := run.manifest.get("kept_in")):
            raise RunError(f"{path} is kept in {kept_in} too, which must not be left behind; name it again")
        return (
            _locked(run) if run is not None else _created(path, question, artifact, workload, command, cost)
        )
    path = path or new_path("tune", secrets.token_hex(3))
    journal = Store(store).take_up(path)
    run = None
    try:
        if is_run(path):
            run = _locked(_unfinished(path, question))
        else:
            run = _created(path, question, artifact, workload, command, cost)
        journal.keep(run)
    except BaseException:
        journal.close()
        if run is not None:
            run.close()
        raise
    return run


def _unfinished(path: Path, question: Question) -> Run:
    run = Run.open(path, kind="tune")
    if run.result is not None:
        raise RunError(f"{path} is finished; see it with: negawatt report {path}, or choose another folder")
    if not _asks(run.manifest.get("question"), question):
        raise RunError(f"{path} holds an unfinished search for something else; choose another folder")
    if run.manifest.get("machine", {}).get("id") != fingerprint()["id"]:
        raise RunError(f"{path} was begun on another machine, whose figures do not compare with this one's")
    return run


def _asks(kept: Any, question: Question) -> bool:
    """Whether a run was begun for this question; what its settings did not tell yet is as usual."""
    if not isinstance(kept, dict):
        return False
    try:
        kept = {**kept, "baseline": Settings.from_json(kept["baseline"]).to_json()}
    except (UsageError, KeyError, TypeError, ValueError):
        return False  # of a later version, or damaged
    return bool(json.loads(json.dumps(question.to_json())) == kept)


def _locked(run: Run) -> Run:
    run.lock()
    return run


def _created(
    path: Path | None,
    question: Question,
    artifact: Artifact,
    workload: Workload,
    command: Sequence[str],
    cost: Cost,
) -> Run:
    return Run.create(
        "tune",
        path=path,
        question=question.to_json(),
        **about(artifact, workload),
        constraints={**question.constraints.to_json(), "batch": list(question.space.batches)},
        baseline=question.baseline.settings.to_json(),
        cost=cost.to_json(),
        command=[without_secrets(each) for each in command],
        machine=fingerprint(),
        sensors=[status.to_json() for status in station().statuses],
    )
