"""The reference that engines are held against: transformers in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings


@pytest.fixture(scope="session")
def reference(model: Artifact) -> Iterator[Engine]:
    settings = Settings(engine="transformers", weight_format="fp32", batch=2, max_context=256, threads=1)
    with Engine(model, settings) as engine:
        yield engine
