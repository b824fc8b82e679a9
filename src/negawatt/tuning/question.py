"""`Question`: what a search is asked, so that an unfinished run is only continued by the same question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from negawatt.tuning.candidate import Candidate
from negawatt.tuning.space import Space
from negawatt.tuning.verdict import Constraints


@dataclass(frozen=True)
class Question:
    """What is asked of a search; two questions that are equal may continue one another's run."""

    artifact: str
    workload: str
    baseline: Candidate
    constraints: Constraints
    space: Space
    seed: int
    strategy: str = "default"

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact_sha256": self.artifact,
            "workload_hash": self.workload,
            "baseline": self.baseline.settings.to_json(),
            "constraints": self.constraints.to_json(),
            "space": self.space.to_json(),
            "seed": self.seed,
            "strategy": self.strategy,
        }
