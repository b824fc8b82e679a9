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
