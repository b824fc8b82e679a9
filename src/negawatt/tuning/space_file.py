"""``space.toml``: what a search may try, as a file that narrows or extends the default."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from negawatt.engine.backends import BACKENDS, backend
from negawatt.engine.cores import CHOICES, Cores
from negawatt.errors import UsageError
from negawatt.tuning.pass_range import PassRange
from negawatt.tuning.space import ALL, FLASH, Space, core_choices, usable

SCHEMA = 1
MAX_BYTES = 100_000
MOST_THREADS = 64
"""More than that, and than four for each processor, is a slip, and one that stops a machine."""
LIMITS = ("power_caps_w", "clocks_mhz", "gpu_power_caps_w", "gpu_clocks_mhz")
_KEYS = {
    "schema", "models", "engines", "threads", "batches", "max_context", "speculation", "flash_attention",
    "weight_formats", "kv_caches", "pass", "cores", "drafts", *LIMITS,
    "gpu_layers",
}  # fmt: skip


def read_space(path: Path, default: Space) -> Space:
    """The space of a file; what it does not mention stays as in `default`.

    Keys: ``schema`` (1), ``models``, ``engines``, ``threads``, ``batches``, ``max_context``,
    ``speculation`` (of none, ngram), ``drafts`` (small models that may propose), ``flash_attention``
    (of default, on, off), ``cores`` (of `negawatt.engine.cores.CHOICES`), ``power_caps_w``, ``clocks_mhz``
    and both with ``gpu_`` before them (numbers, and "none" for no limit), ``gpu_layers`` (numbers, "none" and
    "all"), the tables ``weight_formats`` and ``kv_caches`` (engine → names), and ``[[pass]]``: a ``name``,
    for each parameter a value or a list of values, and ``required``.

    Raises:
        UsageError: it is absent, not TOML, of a newer version, or a key or value is unknown.
    """
    data = _toml(path)
    try:
        return _space(data, default)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc


def keys_of(path: Path) -> frozenset[str]:
    """What a file says something about.

    Raises:
        UsageError: it is absent, or not TOML.
    """
    return frozenset(_toml(path))


def models_of(path: Path) -> tuple[str, ...]:
    """The further models that a file names, as `Artifact.open` takes them.

    Raises:
        UsageError: as for `read_space`.
    """
    try:
        return _words(_toml(path), "models", ())
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc


def _toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UsageError(f"{path} is longer than {MAX_BYTES:,} bytes, too long for a space")
        return tomllib.loads(raw.decode("utf-8"))
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{path} is not TOML: {exc}") from exc


def _space(data: Mapping[str, Any], default: Space) -> Space:
    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise UsageError(f"schema must be a whole number such as {SCHEMA}, not {schema!r}")
    if schema > SCHEMA:
        raise UsageError(f"schema {schema} is newer than this Negawatt reads ({SCHEMA}); update Negawatt")
    if unknown := sorted(set(data) - _KEYS):
        raise UsageError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    engines = usable(_words(data, "engines", ())) if "engines" in data else default.engines
    rows = data.get("pass")
    passes = default.passes
    if rows is not None:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError("passes are written as [[pass]] sections, each with a name")
        passes = tuple(map(_pass, rows))
    threads = _numbers(data, "threads", default.threads, 1)
    cores = _cores(data, threads, default)
    if threads[-1] > (most := max(MOST_THREADS, 4 * len(os.sched_getaffinity(0)))):
        raise UsageError(f"threads must be at most {most} here, not {threads[-1]}")
    searched = engines if "engines" in data else tuple(BACKENDS)
    return replace(
        default,
        engines=engines,
        unasked=default.unasked and "engines" not in data,
        threads=threads,
        cores=cores,
        batches=_numbers(data, "batches", default.batches, 1),
        max_context=_numbers(data, "max_context", (default.max_context,), 2, single=True)[0],
        speculation=_words(data, "speculation", default.speculation, ("none", "ngram")),
        drafts=_words(data, "drafts", default.drafts),
        flash_attention=_words(data, "flash_attention", default.flash_attention, tuple(FLASH)),
        weight_formats=_by_engine(data, "weight_formats", searched, default.weight_formats),
        kv_caches=_by_engine(data, "kv_caches", searched, default.kv_caches),
        limits={**default.limits, **{name: _limits(data[name], name) for name in LIMITS if name in data}},
        gpu_layers=_layers(data, engines, default),
        passes=passes,
    )


def _cores(data: Mapping[str, Any], threads: Sequence[int], default: Space) -> dict[int, tuple[str, ...]]:
    """Where threads are kept: what is asked for, with numbers of threads for which that is something else."""
    here = Cores.here()
    if "cores" not in data:
        return dict(default.cores) if "threads" not in data else core_choices(here, threads)
    asked = _words(data, "cores", (), CHOICES)
    possible = {n: tuple(c for c in asked if c in here.possible(n)) for n in threads}
    for choice in asked:
        if not any(choice in found for found in possible.values()):
            told = ", ".join(map(str, threads))
            raise UsageError(f"{choice} cores are no others than all of them here, with threads {told}")
    return {n: found for n, found in possible.items() if found}


def _limits(value: object, key: str) -> tuple[float, ...]:
    """Limits, the highest first, before them 0 where ``none`` is named."""
    kinds, what = ((int,), "whole numbers") if "clocks" in key else ((int, float), "numbers")
    fits = isinstance(value, list) and all(
        v == "none" or (isinstance(v, kinds) and not isinstance(v, bool) and 0 < v < math.inf) for v in value
    )
    if not isinstance(value, list) or not fits or not value:
        raise UsageError(f'{key} must be a list of {what} above 0, or "none", not {value!r}')
    numbers = sorted({v for v in value if v != "none"}, reverse=True)
    return (0, *numbers) if "none" in value else tuple(numbers)


def _layers(
    data: Mapping[str, Any], engines: Sequence[str], default: Space
) -> Mapping[str, tuple[int, ...]] | None:
    """The same numbers for every engine that can run a part of a model elsewhere."""
    if (value := data.get("gpu_layers")) is None:
        return default.gpu_layers
    words = {"none": 0, "all": ALL}
    fits = isinstance(value, list) and all(
        v in words if isinstance(v, str) else isinstance(v, int) and not isinstance(v, bool) and v >= 0
        for v in value
    )
    if not fits or not value:
        raise UsageError(
            f'gpu_layers must be a list of whole numbers from 0 up, "none" or "all", not {value!r}'
        )
    numbers = tuple(sorted({words.get(v, v) for v in value}))
    return {name: numbers for name in engines if backend(name).has_gpu_layers}


def _pass(row: Mapping[str, Any]) -> PassRange:
    name, required = row.get("name"), row.get("required", False)
    if not isinstance(name, str):
        raise UsageError('a [[pass]] needs a name, such as name = "vocabulary"')
    if not isinstance(required, bool):
        raise UsageError(f"{name}: required must be true or false, not {required!r}")
    given = {key: value for key, value in row.items() if key not in ("name", "required")}
    return PassRange.of(name, given, required=required)


def _by_engine(
    data: Mapping[str, Any], key: str, searched: Sequence[str], default: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    table = data.get(key, {})
    if not isinstance(table, dict):
        raise UsageError(f"{key} must be a section, [{key}], with a list for each engine, not {table!r}")
    found = dict(default)
    for engine in table:
        kind = backend(engine)
        if engine not in searched:
            raise UsageError(f"{key} names {engine}, which is not among the engines")
        has = kind.weight_formats if key == "weight_formats" else kind.kv_caches
        found[engine] = _words(table, engine, (), has, f"{key} of {engine}")
    return found


def _words(
    data: Mapping[str, Any],
    key: str,
    default: Sequence[str],
    known: Sequence[str] | None = None,
    called: str = "",
) -> tuple[str, ...]:
    """A list of words, each once."""
    called = called or key
    value = data.get(key, list(default))
    if (
        not isinstance(value, list)
        or not all(isinstance(v, str) for v in value)
        or (key in data and not value)
    ):
        raise UsageError(f"{called} must be a list of words that is not empty, not {value!r}")
    if known is not None and (odd := [v for v in value if v not in known]):
        raise UsageError(f"{called} are out of {', '.join(known)}; {odd[0]!r} is not among them")
    return tuple(dict.fromkeys(value))


def _numbers(
    data: Mapping[str, Any], key: str, default: Sequence[int], least: int, *, single: bool = False
) -> tuple[int, ...]:
    value = data.get(key, list(default))
    value = [value] if single and isinstance(value, int) else value
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or not value or min(value) < least or (single and len(value) != 1):
        what = "a whole number" if single else "a list of whole numbers"
        raise UsageError(f"{key} must be {what} from {least} up, not {data.get(key)!r}")
    return tuple(sorted(dict.fromkeys(value)))
