"""The reference that engines are held against: transformers in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings


@pytest.fixture(scope="module")
def reference(model: Artifact) -> Iterator[Engine]:
    """Closed after each module: what comes next may hold the machine to limits, beside no other engine."""
    settings = Settings(engine="transformers", weight_format="fp32", batch=2, max_context=256, threads=1)
    with Engine(model, settings) as engine:
        yield engine
