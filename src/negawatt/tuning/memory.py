"""`Memory`: what searches for one model saw on one machine, kept for the next search."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negawatt.errors import NegawattError
from negawatt.home import home, written_beside
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.predictor import Observation
from negawatt.tuning.space import Space
from negawatt.tuning.trial import Trial

MOST = 120
"""Trials that are remembered of a model on a machine; the oldest go first."""


class Memory:
    """Costs and drops of quality, by model and machine, in a file under ``NEGAWATT_HOME/cache``.

    CPU seconds are kept in units of the reference load, so that the machine's own pace at the time is out of
    them; joules are kept as they are, and nothing is recalled of searches that counted something else.

    Args:
        artifact_sha256: of the model.
        machine: `fingerprint`'s id.
    """

    def __init__(self, artifact_sha256: str, machine: str) -> None:
        self.file: Path = home() / "cache" / artifact_sha256[:16] / f"tried-{machine}.json"

    def keep(
        self,
        trials: Sequence[Trial],
        run: str,
        compared_with: str,
        reference_s: float,
        cost: Cost = CPU_SECONDS,
    ) -> None:
        """Remember the trials of a search that has ended.

        Args:
            run: what tells it from other searches.
            compared_with: items and baseline; drops of quality hold for these alone.
            reference_s: cost of the reference load that the trials' costs are relative to.
            cost: what was counted.
        """
        unit = {} if cost == CPU_SECONDS else {"unit": cost.name}
        kept = [
            {
                **t.candidate.to_json(),
                "run": run,
                "compared_with": compared_with,
                "cost": cost.at_start(t.cost, 1.0, reference_s),
                **unit,
                "short": t.state == "pruned",
                "drop": (t.figures.get("quality_drop") or {}).get("drop"),
            }
            for t in trials
            if t.cost is not None
        ]
        content = [*self._stored(), *kept][-MOST:]
        with written_beside(self.file) as place:
            place.write_text(json.dumps(content), "utf-8")

    def observations(
        self, space: Space, compared_with: str, reference_s: float, cost: Cost = CPU_SECONDS
    ) -> list[Observation]:
        """What is remembered of points of a space, counted alike, in terms of today's reference load."""
        found = []
        for record in self._stored():
            if record.get("unit", CPU_SECONDS.name) != cost.name or record.get("looked"):
                continue  # `looked`: short answers of an older version, each paying for its whole prompt
            try:
                candidate = Candidate.from_json(record)
                point = space.parameters(candidate)
                kept, run = float(record["cost"]), str(record["run"])
                same = record["compared_with"] == compared_with and record["drop"] is not None
                drop = float(record["drop"]) if same else None
            except (NegawattError, KeyError, TypeError, ValueError):
                continue  # it lies outside the space, or was written by another version
            if kept > 0:
                value = math.log(cost.at_start(kept, reference_s, 1.0))
                found.append(
                    Observation(point, value, bool(record.get("short")), drop, candidate.arithmetic, run=run)
                )
        return found

    def _stored(self) -> list[dict[str, Any]]:
        try:
            content = json.loads(self.file.read_text("utf-8"))
        except (OSError, ValueError):
            return []  # nothing yet, or damaged: it is only a help
        return [record for record in content if isinstance(record, dict)] if isinstance(content, list) else []
