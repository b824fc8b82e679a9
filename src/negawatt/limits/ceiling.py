"""`Ceiling`: what a part of the machine may draw, or how fast it may run, where that can be lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["power", "clock"]

UNITS: dict[Kind, str] = {"power": "W", "clock": "MHz"}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One ceiling, as it stands.

    Attributes:
        part: ``cpu/0`` (a package), ``policy0`` (processors that share a clock) or ``gpu/0``.
        kind: of power, in W, or of the clock, in MHz.
        place: where the system keeps it; see `negawatt.limits.system.System`.
        kept: what stands there, in the system's own unit; None where that cannot be read.
        now: what is in force, in W or MHz; infinite where nothing is.
        lowest: below this it is not set, in W or MHz.
        per_unit: W or MHz in each of the system's units.
        step: a difference up to this is the system's rounding, in W or MHz.
        switch: place of the 0 that says that it is not in force; None where it is.
        window_s: it holds on average over so many seconds; 0 where it always holds.
    """

    part: str
    kind: Kind
    place: str
    kept: int | None
    now: float
    lowest: float
    per_unit: float
    step: float
    switch: str | None = None
    window_s: float = 0.0

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    def __str__(self) -> str:
        """Such as ``cpu/0 from 16.5 to 165 W, on average over 28 s``."""
        averaged = f", on average over {self.window_s:.3g} s" if self.window_s else ""
        if self.now == float("inf"):
            return f"{self.part} from {self.lowest:.4g} {self.unit} up{averaged}"
        return f"{self.part} from {self.lowest:.4g} to {self.now:.4g} {self.unit}{averaged}"
