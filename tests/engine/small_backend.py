"""A backend with a small model loaded, for tests that step it themselves."""

from __future__ import annotations

from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.engine import Settings, backends
from negawatt.engine.backend import Backend


def loaded(
    artifact: Artifact, folder: Path, engine: str, speculation: str = "none", *, batch: int, slots: int
) -> Backend:
    """The backend on one thread; one whose sequences share a pool has `slots` of 512 cells in all."""
    weights = "fp32" if engine == "transformers" else "native"
    settings = Settings(
        engine=engine, batch=batch, weight_format=weights, max_context=128, threads=1, speculation=speculation
    )
    backend = backends.backend(engine)(settings)
    if backend.shares:
        backend.reserve(slots, 512)
    backend.load(backend.prepare(artifact.path, weights, folder))
    return backend
