"""The engines by name, imported only when used."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from negawatt.engine.backend import Backend
from negawatt.errors import NegawattError, UsageError

BACKENDS = {
    "llamacpp": "negawatt.engine.llamacpp:LlamaCppBackend",
    "onnxruntime": "negawatt.engine.onnxruntime:OnnxRuntimeBackend",
    "openvino": "negawatt.engine.openvino:OpenVinoBackend",
    "transformers": "negawatt.engine.transformers:TransformersBackend",
}


def backend(name: str) -> type[Backend]:
    """The adapter class of an engine.

    Raises:
        UsageError: there is no engine of that name.
    """
    if name not in BACKENDS:
        raise UsageError(f"no engine is called {name!r}; there are {', '.join(sorted(BACKENDS))}")
    module, _, attribute = BACKENDS[name].partition(":")
    found: type[Backend] = getattr(importlib.import_module(module), attribute)
    return found


def accelerator_of(name: str) -> str:
    """What an engine calls the devices beside the processor that it takes first; ``cpu`` if it has none.

    Raises:
        UsageError: there is no engine of that name.
    """
    return (*backend(name).devices[1:], "cpu")[0]


def engines(names: Iterable[str] = tuple(sorted(BACKENDS))) -> list[dict[str, Any]]:
    """Every engine, or those named, as `doctor` shows them.

    Each with ``name``, ``status`` (ok or absent), ``version``, ``reason`` and ``remedy``.
    """
    listed = []
    for name in names:
        entry: dict[str, Any] = {"name": name, "status": "ok", "version": None, "reason": "", "remedy": ""}
        try:
            entry["version"] = backend(name).version()
        except NegawattError as exc:
            reason, _, remedy = str(exc).partition(";")
            entry.update(status="absent", reason=reason, remedy=remedy.strip())
        listed.append(entry)
    return listed


def devices() -> list[dict[str, Any]]:
    """What the installed engines can run on beside the processor, as `doctor` shows it.

    Each with ``name`` (the engine's, and the device's), ``engine``, ``device`` (see `Settings`), ``status``
    (ok or absent), ``memory_bytes``, ``reason`` (what it is, or why there is none) and ``remedy``.
    """
    listed = []
    for row in engines():
        kind = backend(row["name"])
        others = kind.devices[1:] if row["status"] == "ok" else ()
        if not others:
            continue
        absent: dict[str, Any] = {
            "engine": kind.name,
            "device": others[0],
            "status": "absent",
            "memory_bytes": None,
        }
        absent |= {"name": f"{kind.name} {others[0]}", "reason": "none found", "remedy": ""}
        try:
            found = kind.accelerators()
        except NegawattError as exc:
            reason, _, remedy = str(exc).partition(";")
            listed.append({**absent, "reason": reason, "remedy": remedy.strip()})
            continue
        listed += [
            {
                **absent, "device": each.device, "status": "ok", "memory_bytes": each.memory_bytes,
                "name": f"{kind.name} {each.name}", "reason": each.description,
            }
            for each in found
        ] or [absent]  # fmt: skip
    return listed
