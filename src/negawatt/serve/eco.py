"""`Eco`: one name for variants of a model, of which the grid's carbon intensity chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.errors import UsageError
from negawatt.serve.grid import Grid

SLOT_S = 900.0
"""The intensity of a quarter of an hour decides for its requests."""


@dataclass(frozen=True, slots=True)
class Level:
    """From `above` grams of CO₂ equivalent a kWh on, `model` answers."""

    above: float
    model: str


@dataclass(frozen=True, slots=True)
class Eco:
    """An ``[[eco]]`` of the configuration.

    Attributes:
        name: by which clients ask for it.
        model: that answers while the grid is clean, and where its intensity is not known.
        levels: by rising intensity.
    """

    name: str
    model: str
    levels: tuple[Level, ...]

    @classmethod
    def of_toml(cls, table: Mapping[str, Any], where: str) -> Eco:
        """
        Raises:
            UsageError: a field is missing, unknown or of the wrong kind.
        """
        try:
            known = dict(table)
            name, model, levels = known.pop("name"), known.pop("model"), known.pop("levels")
            found = tuple(Level(float(level["above"]), str(level["model"])) for level in levels)
            if known or not all(set(level) == {"above", "model"} for level in levels):
                raise ValueError("there are name, model and levels, each level with above and model")
        except (KeyError, TypeError, ValueError) as exc:
            raise UsageError(f"{where}: expected name, model and levels of above and model: {exc}") from exc
        if not found or [level.above for level in found] != sorted({level.above for level in found}):
            raise UsageError(f"{where}: expected levels by rising intensity, at least one")
        return cls(str(name), str(model), found)

    def choice(self, grams_per_kwh: float | None) -> str:
        """The model that answers at an intensity; None where that is not known."""
        reached = [level.model for level in self.levels if (grams_per_kwh or 0.0) > level.above]
        return reached[-1] if reached else self.model

    @property
    def models(self) -> tuple[str, ...]:
        return self.model, *(level.model for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        levels = [{"above": level.above, "model": level.model} for level in self.levels]
        return {"model": self.model, "levels": levels}


def intensity_of(grid: Grid, now_s: float) -> float | None:
    """Grams a kWh of the grid at a time, as far as anything tells."""
    rates = grid.expected(now_s, now_s + SLOT_S, SLOT_S)
    return rates[0] if rates else None
