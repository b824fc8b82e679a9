"""A recorded landscape: what every point of a space costs and loses, and what trying it costs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from negawatt.engine import Settings
from negawatt.tuning import Space
from negawatt.tuning.space import AS_DEFAULT

FOLDER = Path(__file__).with_name("landscapes")


@dataclass(frozen=True)
class Landscape:
    """One table of ``benchmarks/landscapes``.

    Attributes:
        table: as `record_landscapes` writes it.
        limit: on the drop of quality on the table's items.
    """

    table: dict[str, Any]
    limit: float = 0.10

    @classmethod
    def read(cls, file: Path) -> Landscape:
        return cls(json.loads(file.read_text("utf-8")))

    @cached_property
    def space(self) -> Space:
        kept = self.table["space"]
        return Space(
            tuple(kept["engines"]),
            tuple(kept["batches"]),
            tuple(kept["threads"]),
            kept["max_context"],
            {name: tuple(formats) for name, formats in kept["weight_formats"].items()},
            kv_caches={name: self._caches(name) for name in kept["engines"]},
        )

    def _caches(self, engine: str) -> tuple[str, ...]:
        """Precisions of the cache that were recorded; what an engine offers differs by processor."""
        return tuple(dict.fromkeys(s.kv_cache for s in self.points if s.engine == engine))

    @cached_property
    def points(self) -> dict[Settings, dict[str, Any]]:
        """Of each way what was recorded, but for caches that a search does not try beside the default's."""
        recorded = {Settings.from_json(p["settings"]): p for p in self.table["points"]}
        return {settings: p for settings, p in recorded.items() if settings.kv_cache not in AS_DEFAULT}

    @cached_property
    def qualities(self) -> dict[tuple[str, ...], dict[str, Any]]:
        return {tuple(q["arithmetic"]): q for q in self.table["quality"]}

    @cached_property
    def whole(self) -> bool:
        """Whether every point was measured, and every arithmetic judged or none."""
        settings = [candidate.settings for candidate in self.space.grid()]
        judged = not self.qualities or all(s.arithmetic in self.qualities for s in settings)
        return judged and all(s in self.points for s in settings)

    def failed(self, settings: Settings) -> bool:
        return "failed" in self.points[settings] or "failed" in self.quality(settings)

    def quality(self, settings: Settings) -> dict[str, Any]:
        """Of a table that holds costs only, no point loses anything, and judging is free."""
        return self.qualities[settings.arithmetic] if self.qualities else {"drop": 0.0, "spent_cpu_s": 0.0}

    def cost(self, settings: Settings) -> float:
        """CPU seconds per token: the mean of the windows."""
        costs = self.points[settings]["costs"]
        return float(sum(costs) / len(costs))

    def drop(self, settings: Settings) -> float:
        return float(self.quality(settings)["drop"])

    def keeps(self, settings: Settings) -> bool:
        """Whether its quality is good enough."""
        return self.drop(settings) <= self.limit + 1e-9

    @cached_property
    def best(self) -> float:
        """The lowest cost of a point that works and keeps its quality."""
        return min(self.cost(s) for s in self.points if not self.failed(s) and self.keeps(s))

    @cached_property
    def grid_cpu_s(self) -> float:
        """What trying every point in full costs: each format made once, each arithmetic judged once."""
        account = Account(self)
        for settings in self.points:
            account.look(settings)
            account.whole(settings)
            account.judge(settings)
        return account.spent_cpu_s


class Account:
    """CPU seconds that a search has spent; what was made or judged once is not paid for again."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        self.spent_cpu_s = 0.0
        self._made: set[tuple[str, str]] = set()
        self._judged: set[tuple[str, ...]] = set()

    def look(self, settings: Settings) -> None:
        """Weights made where they were not, the model loaded, and a few tokens."""
        made = settings.engine, settings.weight_format
        if made not in self._made:
            self._made.add(made)
            same = (p for s, p in self.landscape.points.items() if (s.engine, s.weight_format) == made)
            self.spent_cpu_s += max((p.get("prepared_cpu_s", 0.0) for p in same), default=0.0)
        self.spent_cpu_s += self.landscape.points[settings].get("look_spent_cpu_s", 1.0)

    def whole(self, settings: Settings) -> None:
        self.spent_cpu_s += self.landscape.points[settings].get("whole_cpu_s", 0.0)

    def judge(self, settings: Settings) -> None:
        if settings.arithmetic in self._judged:
            return
        self._judged.add(settings.arithmetic)
        self.spent_cpu_s += self.landscape.quality(settings).get("spent_cpu_s", 1.0)


def recorded() -> list[Landscape]:
    """The tables that are complete."""
    found = [Landscape.read(file) for file in sorted(FOLDER.glob("*.json"))]
    return [one for one in found if one.whole]


def gap(cost: float, best: float) -> float:
    """How much dearer a choice is than the best; infinite where nothing was chosen."""
    return cost / best - 1 if math.isfinite(cost) else math.inf
