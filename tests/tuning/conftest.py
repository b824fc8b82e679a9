"""A small random model and a workload for whole searches in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from negawatt.artifact import Artifact
from negawatt.testing.small_models import TEXT, small_model
from negawatt.workload import ChooseItem, TrafficItem, Workload


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Six layers wide enough that half of them cost clearly less."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64}
    return Artifact.open(str(small_model(tmp_path_factory.mktemp("small") / "model", **wide)))


@pytest.fixture(scope="session")
def lines() -> Workload:
    """Lines of a text to go on from, and to choose the next word of."""
    said = (TEXT * 4).strip().splitlines()
    traffic = tuple(TrafficItem(f"t{n}", line, 40) for n, line in enumerate(said[:12]))
    quality = tuple(ChooseItem(f"q{n}", line, (" rain", " bread"), n % 2) for n, line in enumerate(said))
    return Workload("lines", "lines", "made", "Apache-2.0", traffic, quality, {"choose": "accuracy"})


@pytest.fixture(scope="session")
def home_with_engines(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own that shares the engine pulled already (with `model`)."""
    from negawatt.home import home

    place = tmp_path_factory.mktemp("home")
    (place / "runtimes").symlink_to(home() / "runtimes")
    return place


@pytest.fixture(scope="module")
def in_home_with_engines(home_with_engines: Path) -> Iterator[None]:
    """For modules whose searches must not find what others made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGAWATT_HOME", str(home_with_engines))
        yield
