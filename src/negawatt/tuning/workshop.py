"""`Workshop`: where the weights of candidates come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.engine import Engine
from negawatt.errors import UsageError
from negawatt.tuning.candidate import Candidate


class Workshop:
    """Gives the artifact that a candidate runs.

    Args:
        artifact: the model that the baseline runs.
        others: further models by name.
    """

    def __init__(self, artifact: Artifact, others: Mapping[str, Artifact] | None = None) -> None:
        self.models = {"": artifact, **(others or {})}

    @property
    def base(self) -> Artifact:
        """The model that the baseline runs."""
        return self.models[""]

    def artifact(self, candidate: Candidate) -> Artifact:
        """The weights of a candidate.

        Raises:
            UsageError: its model is none of those searched.
        """
        if candidate.model not in self.models:
            raise UsageError(f"the search has no model {candidate.model!r}")
        if candidate.passes:
            raise UsageError(f"{candidate} is made by passes, which this search does not apply")
        return self.models[candidate.model]

    def engine(self, candidate: Candidate, prepared: Path | None = None) -> Engine:
        """An engine that runs it, not open yet."""
        return Engine(self.artifact(candidate), candidate.settings, prepared=prepared)
