"""Tolerant reading of JSON: absence and wrong types become None or empty, never an exception."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from negawatt.energy import Energy


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(data: Any, *keys: str) -> float | None:
    """The finite number at a path of keys, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return float(data) if is_number(data) else None


def mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def sequence(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def text(data: Any) -> str:
    return "" if data is None or isinstance(data, (Mapping, list)) else str(data).strip()


def texts(data: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(text, sequence(data))))


def named(data: Any) -> str:
    """The name of an artifact or workload, given as an object with a name or as a string."""
    return text(mapping(data).get("name")) if isinstance(data, Mapping) else text(data)


def energy(data: Any) -> Energy:
    if not isinstance(data, Mapping):
        return Energy.missing("not recorded")
    try:
        return Energy.from_json(data)
    except (ValueError, TypeError) as exc:
        return Energy.missing(f"the record is unreadable ({exc})")
