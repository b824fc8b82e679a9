"""`Sum`: receipts added up by key, team, model or day, with the provenance of what was added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from negawatt.carbon import Amount
from negawatt.database import Database, Row
from negawatt.energy import Energy, Provenance
from negawatt.errors import UsageError
from negawatt.serve.ledger import AMOUNTS, ENERGIES

By = Literal["key", "team", "model", "day", "outcome"]
BYS: tuple[By, ...] = get_args(By)
_COLUMN: dict[By, str] = {name: "key_id" if name == "key" else name for name in BYS}
_REASONS = 4


@dataclass(frozen=True, slots=True)
class Filter:
    """Which receipts are added up.

    Attributes:
        since_s, until_s: when their requests came, in seconds since the epoch; the end is not part of it.
        key, team, model: exact names; None for all.
    """

    since_s: float | None = None
    until_s: float | None = None
    key: str | None = None
    team: str | None = None
    model: str | None = None

    def clause(self) -> tuple[str, list[Any]]:
        """A condition with its values."""
        parts = {
            "created_s >= ?": self.since_s,
            "created_s < ?": self.until_s,
            "key_id = ?": self.key,
            "team = ?": self.team,
            "model = ?": self.model,
        }
        chosen = {text: value for text, value in parts.items() if value is not None}
        return " AND ".join(chosen) or "1 = 1", list(chosen.values())


@dataclass(frozen=True, slots=True)
class Sum:
    """Receipts of one group, added up.

    Attributes:
        group: its key, team, model, day (``2026-03-01``, UTC) or outcome, whichever were asked for.
        receipts: how many.
        input_tokens, cached_tokens, output_tokens: as in `negawatt.serve.receipt.Receipt`.
        energy, prefill, decode, idle: joules; missing when one of them is, with what is known at least.
        carbon, water, cost: None where no receipt has any; missing where some have none.
    """

    group: dict[str, str]
    receipts: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    energy: Energy
    prefill: Energy
    decode: Energy
    idle: Energy
    amounts: dict[str, Amount | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.group,
            "receipts": self.receipts,
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            **{name: getattr(self, name).to_json() for name in ENERGIES},
            **{name: None if a is None else a.to_json() for name, a in self.amounts.items()},
        }


def sums(database: Database, by: Sequence[By], chosen: Filter | None = None) -> list[Sum]:
    """Add up a ledger's receipts, a sum a group; without groups one sum of all.

    Raises:
        UsageError: two currencies are to be added; no such group.
    """
    if unknown := [name for name in by if name not in _COLUMN]:
        raise UsageError(f"expected groups among {', '.join(BYS)}, not {unknown[0]!r}")
    groups = [_COLUMN[name] for name in dict.fromkeys(by)]
    clause, values = (chosen or Filter()).clause()
    tail = f"FROM receipts WHERE {clause}"
    if groups:
        tail += f" GROUP BY {', '.join(groups)} ORDER BY {', '.join(groups)}"
    figures = ", ".join(_aggregate(name) for name in (*ENERGIES, *AMOUNTS))
    wanted = [*groups, "COUNT(*), SUM(input_tokens), SUM(cached_tokens), SUM(output_tokens)", figures]
    with database.read() as session:
        rows = session.execute(f"SELECT {', '.join(wanted)} {tail}", values)
        reasons = {
            name: session.execute(_distinct(name, groups, clause), values) for name in (*ENERGIES, *AMOUNTS)
        }
    return [_sum(list(dict.fromkeys(by)), row, reasons) for row in rows if row[len(groups)]]


def _aggregate(name: str) -> str:
    """Value, low, high, the worst provenance as a number, how many are there, how many are missing."""
    rank = " ".join(f"WHEN '{p!s}' THEN {int(p)}" for p in Provenance)
    return (
        f"SUM({name}_value), SUM({name}_low), SUM({name}_high), MAX(CASE {name}_provenance {rank} END), "
        f"COUNT({name}_provenance), COUNT(CASE WHEN {name}_provenance = 'missing' THEN 1 END), "
        f"MIN({name}_unit), MAX({name}_unit)"
    )


def _distinct(name: str, groups: list[str], clause: str) -> str:
    columns = ", ".join([*groups, f"{name}_reason"])
    return f"SELECT DISTINCT {columns} FROM receipts WHERE {clause} AND {name}_reason <> ''"  # noqa: S608


def _sum(by: list[str], row: Row, reasons: dict[str, list[Row]]) -> Sum:
    width = len(by)
    key, (count, n_in, n_cached, n_out) = row[:width], row[width : width + 4]
    rest = row[width + 4 :]
    energies: dict[str, Energy] = {}
    amounts: dict[str, Amount | None] = {}
    for place, name in enumerate((*ENERGIES, *AMOUNTS)):
        figures = rest[place * 8 : place * 8 + 8]
        words = [found[-1] for found in reasons[name] if found[:width] == key]
        reason = "; ".join(sorted(words)[:_REASONS])
        if name in ENERGIES:
            amount = _amount(figures, reason, count)
            assert amount is not None
            energies[name] = Energy(amount.value, amount.low, amount.high, amount.provenance, amount.reason)
        else:
            amounts[name] = _amount(figures, reason, count)
    group = dict(zip(by, key, strict=True))
    return Sum(group, count, int(n_in), int(n_cached), int(n_out), **energies, amounts=amounts)


def _amount(figures: Row, reason: str, count: int) -> Amount | None:
    value, low, high, rank, there, missing, unit, other = figures
    if there == 0:
        return None
    if unit != other:
        raise UsageError(f"{unit} and {other} do not add; choose receipts of one of them (--since, --until)")
    if missing or there < count:
        absent = f"{missing + count - there} of {count} receipts have none"
        return Amount.missing(unit, f"{absent}; {reason}" if reason else absent, low=low)
    provenance = Provenance(rank)
    return Amount(value, min(low, value), max(high, value), unit, provenance, reason)
