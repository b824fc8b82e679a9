"""`Ledger`: energy from the chip to the whole site, as one waterfall that says where it stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from negawatt.carbon.amount import Factor, scaled
from negawatt.energy import Energy
from negawatt.errors import UsageError

Boundary = Literal["chip", "host", "wall", "facility"]
BOUNDARIES: tuple[Boundary, ...] = ("chip", "host", "wall", "facility")
"""From the inside out: processors and memory; the machine behind its power supply; the socket; the
site with its cooling. Each contains the one before it."""

WHAT: dict[Boundary, str] = {
    "chip": "processors, memory, accelerators",
    "host": "fans, disks, board, network",
    "wall": "losses of the power supply",
    "facility": "cooling and distribution of the site",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A step of the waterfall.

    Attributes:
        covers: the boundaries whose energy this step adds; several where a meter further out sees
            them together.
        added: joules of the step itself; may be negative where two meters disagree, never clamped.
        total: joules up to and including it.
        how: what the step rests on, in words.
    """

    covers: tuple[Boundary, ...]
    added: Energy
    total: Energy
    how: str

    def to_json(self) -> dict[str, Any]:
        return {
            "covers": list(self.covers),
            "what": "; ".join(WHAT[boundary] for boundary in self.covers),
            "added": self.added.to_json(),
            "total": self.total.to_json(),
            "how": self.how,
        }


@dataclass(frozen=True, slots=True)
class Ledger:
    """One piece of work's energy at every boundary.

    The values of the known steps add up to the total at the outermost known boundary.

    Attributes:
        lines: from the inside out, every boundary in exactly one of them.
        warnings: sentences about steps that contradict each other.
    """

    lines: tuple[Line, ...]
    warnings: tuple[str, ...] = ()

    @property
    def boundary(self) -> Boundary | None:
        """The outermost boundary up to which the energy is known; None when nothing is."""
        known = [line for line in self.lines if not line.total.is_missing]
        return known[-1].covers[-1] if known else None

    @property
    def total(self) -> Energy:
        """Joules at that boundary."""
        known = [line.total for line in self.lines if not line.total.is_missing]
        return known[-1] if known else self.lines[-1].total

    def at(self, boundary: Boundary) -> Energy:
        """Joules at a boundary; missing where no meter or factor separates it from the next."""
        for line in self.lines:
            if boundary in line.covers:
                if boundary == line.covers[-1]:
                    return line.total
                return Energy.missing(f"{boundary} was not told apart from {line.covers[-1]}")
        raise UsageError(f"expected one of {', '.join(BOUNDARIES)}, not {boundary!r}")

    def to_json(self) -> dict[str, Any]:
        return {
            "boundary": self.boundary,
            "total": self.total.to_json(),
            "lines": [line.to_json() for line in self.lines],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """The waterfall as text, a step a line, bars to the scale of the total."""
        whole = max((abs(line.total.value_j or 0) for line in self.lines), default=0) or 1.0
        rows, reached = [], 0.0
        for line in self.lines:
            name = "+".join(line.covers)
            if line.added.value_j is None:
                rows.append(f"{name:<20} {'':24} {line.added}")
                continue
            start, stop = sorted((reached / whole * 24, (reached + line.added.value_j) / whole * 24))
            bar = " " * max(0, round(start)) + "█" * max(1, round(stop) - round(start))
            rows.append(f"{name:<20} {bar:<24.24} {line.added}, {line.how}")
            reached += line.added.value_j
        drawn = f"boundary drawn at: {self.boundary or 'nothing is known'}; total {self.total}"
        return "\n".join([*rows, drawn, *self.warnings])


def ledger(measured: Mapping[Boundary, Energy], factors: Mapping[Boundary, Factor] | None = None) -> Ledger:
    """Lay out one piece of work's energy from the chip to the site.

    Args:
        measured: energy at the boundaries that have a figure of their own, all for the same work over
            the same time. A whole machine's meter beside one process's share is not the same work.
        factors: for boundaries without a figure, what the energy inside is multiplied by: for
            ``wall`` the reciprocal of the power supply's efficiency, for ``facility`` the PUE. A
            figure goes before a factor; a factor on nothing known is not applied, with a warning.

    Raises:
        UsageError: an unknown boundary, or a factor that is not a pure number.
    """
    factors = factors or {}
    for name in (*measured, *factors):
        if name not in BOUNDARIES:
            raise UsageError(f"expected one of {', '.join(BOUNDARIES)}, not {name!r}")
    lines: list[Line] = []
    warnings: list[str] = []
    inside: Energy | None = None
    pending: list[Boundary] = []
    for boundary in BOUNDARIES:
        own = measured.get(boundary)
        if own is not None and not own.is_missing:
            covers = (*pending, boundary)
            added = own if inside is None else own - inside
            how = f"{own.provenance} at the {boundary}"
            if inside is not None:
                how += ", less what is inside"
                if added.high_j is not None and added.high_j < 0:
                    warnings.append(
                        f"the {boundary} reads less than what is inside it ({own} against {inside}): "
                        "the meters disagree, or do not cover the same work"
                    )
            lines.append(Line(covers, added, own, how))
            inside, pending = own, []
        elif (factor := factors.get(boundary)) is not None and inside is not None and not pending:
            total = scaled(inside, factor)
            # Scaled by the excess, not subtracted: the error of `inside` is in both and cancels.
            added = scaled(inside, _less_one(factor))
            lines.append(Line((boundary,), added, total, f"{factor} times what is inside: {factor.source}"))
            inside = total
        else:
            if boundary in factors:
                inner = BOUNDARIES[max(0, BOUNDARIES.index(boundary) - 1)]
                warnings.append(
                    f"the factor of the {boundary} was not applied: nothing is known at the {inner}"
                )
            pending.append(boundary)
    if pending:
        lines.append(_unknown(pending, inside, measured))
    return Ledger(tuple(lines), tuple(warnings))


def _less_one(factor: Factor) -> Factor:
    if factor.unit != "1":
        raise UsageError(f"expected a pure number, such as a PUE, not a rate in {factor.unit}")
    return Factor(factor.value - 1, factor.low - 1, factor.high - 1, "1", factor.provenance, factor.source)


def _unknown(pending: list[Boundary], inside: Energy | None, measured: Mapping[Boundary, Energy]) -> Line:
    reasons = [measured[b].reason for b in pending if b in measured and measured[b].reason]
    added = Energy.missing("; ".join(reasons) or "no meter and no factor was given")
    total = added if inside is None else inside + added
    return Line(tuple(pending), added, total, "missing")
