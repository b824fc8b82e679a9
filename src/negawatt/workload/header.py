"""The header of a workload: ``workload.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.errors import WorkloadError
from negawatt.workload.items import KINDS
from negawatt.workload.metrics import METRICS

SCHEMA = 1
MAX_HEADER_BYTES = 100_000
MOST_QUERIES = 1e9
_FIELDS = {"schema", "name", "description", "source", "licence", "traffic", "quality", "corpus"}


@dataclass(frozen=True, slots=True)
class Part:
    """Where the items of a part are, and the sha256 their file must have, if the header says."""

    items: Path
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Header:
    """The content of a header, checked; see docs/workloads.md for the fields."""

    file: Path
    name: str
    description: str
    source: str
    licence: str
    traffic: Part | None
    quality: Part | None
    kinds: tuple[str, ...]
    metrics: Mapping[str, str]
    corpus: Part | None = None
    queries_per_document: float | None = None


def read_header(file: Path) -> Header:
    """Read and check a header.

    Raises:
        WorkloadError: it breaks the format, is newer than this version, or names a file outside its
            folder.
    """
    data = _toml(file)
    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise WorkloadError(f"{file}: 'schema' must be a whole number such as {SCHEMA}, not {_shown(schema)}")
    if schema > SCHEMA:
        raise WorkloadError(
            f"{file} has schema {_shown(schema)}, newer than this Negawatt reads ({SCHEMA}); update Negawatt"
        )
    _refuse_unknown(file, "", data, _FIELDS)
    if "traffic" not in data and "quality" not in data:
        raise WorkloadError(f"{file} holds no items: it needs a [traffic] or a [quality] section")
    quality = _table(file, data, "quality", {"items", "sha256", "kinds", "metrics"})
    traffic = _table(file, data, "traffic", {"items", "sha256"})
    corpus = _table(file, data, "corpus", {"items", "sha256", "queries_per_document"})
    return Header(
        file,
        name=_text(file, data, "name"),
        description=_text(file, data, "description"),
        source=_text(file, data, "source"),
        licence=_text(file, data, "licence"),
        traffic=_part(file, "traffic", traffic),
        quality=_part(file, "quality", quality),
        kinds=_kinds(file, quality or {}),
        metrics=_metrics(file, quality or {}),
        corpus=_part(file, "corpus", corpus),
        queries_per_document=_queries_per_document(file, corpus or {}),
    )


def _toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_HEADER_BYTES + 1)
    except OSError as exc:
        raise WorkloadError(f"{file} cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > MAX_HEADER_BYTES:
        raise WorkloadError(f"{file} is longer than {MAX_HEADER_BYTES:,} bytes, too long for a header")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise WorkloadError(f"{file} is not valid UTF-8 at byte {exc.start}") from exc
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits is a plain ValueError
        raise WorkloadError(f"{file} is not valid TOML: {exc}") from exc


def _text(file: Path, data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise WorkloadError(f"{file}: {key!r} must be a text that is not empty, not {_shown(value)}")
    return value.strip()


def _table(file: Path, data: Mapping[str, Any], key: str, known: set[str]) -> dict[str, Any] | None:
    table = data.get(key)
    if table is None:
        return None
    if not isinstance(table, dict):
        raise WorkloadError(f"{file}: {key!r} must be a section, [{key}], not {_shown(table)}")
    _refuse_unknown(file, f" of [{key}]", table, known)
    return table


def _refuse_unknown(file: Path, where: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(table) - known):
        raise WorkloadError(
            f"{file}: unknown field {_shown(unknown[0])}{where}; known: {', '.join(sorted(known))}"
        )


def _part(file: Path, key: str, table: Mapping[str, Any] | None) -> Part | None:
    if table is None:
        return None
    name = _text(file, table, "items")
    if Path(name).is_absolute() or not _is_inside(file.parent, name):
        raise WorkloadError(
            f"{file}: 'items' of [{key}] must be a file in the header's own folder, not {_shown(name)}"
        )
    sha256 = table.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
        raise WorkloadError(
            f"{file}: 'sha256' of [{key}] must be 64 hexadecimal digits, not {_shown(sha256)}"
        )
    return Part(file.parent / name, sha256)


def _queries_per_document(file: Path, corpus: Mapping[str, Any]) -> float | None:
    value = corpus.get("queries_per_document")
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MOST_QUERIES:
        raise WorkloadError(f"{file}: 'queries_per_document' must be a number above 0, not {_shown(value)}")
    return float(value)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a file lies in a folder or below, with every link followed."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (ValueError, RuntimeError, OSError):  # a NUL byte, a loop of links, an impossible name
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kinds(file: Path, quality: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = quality.get("kinds", [])
    if not isinstance(kinds, list) or not all(kind in KINDS for kind in kinds):
        raise WorkloadError(f"{file}: 'kinds' must be a list out of {', '.join(KINDS)}, not {_shown(kinds)}")
    return tuple(kinds)


def _metrics(file: Path, quality: Mapping[str, Any]) -> dict[str, str]:
    metrics = quality.get("metrics", {})
    if not isinstance(metrics, dict):
        raise WorkloadError(f"{file}: 'metrics' must be a section, [quality.metrics], not {_shown(metrics)}")
    for kind, name in metrics.items():
        known = [m.name for m in METRICS.values() if kind in m.kinds]
        if name not in known:
            raise WorkloadError(
                f"{file}: items of kind {kind!r} are judged by {', '.join(known)}, not {_shown(name)}"
                if known
                else f"{file}: [quality.metrics] names the kind {_shown(kind)}; there are {', '.join(KINDS)}"
            )
    return metrics
