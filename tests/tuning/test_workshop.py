"""Weights of candidates: passes in a process of their own, each shared prefix made once, and never twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.errors import EngineError
from negawatt.testing.small_models import TEXT, small_model
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.workshop import Making, Workshop
from negawatt.workload import ChooseItem, TrafficItem, Workload

RTN, DEPTH = "rtn:group=32", "depth:ratio=0.4,order=contiguous"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(str(small_model(tmp_path_factory.mktemp("source") / "model")))


@pytest.fixture
def usage() -> Workload:
    lines = (TEXT * 4).strip().splitlines()
    traffic = tuple(TrafficItem(f"t{n}", line, 8) for n, line in enumerate(lines))
    quality = tuple(ChooseItem(f"q{n}", line, ("rain", "bread"), 0) for n, line in enumerate(lines))
    return Workload("usage", "lines", "made", "Apache-2.0", traffic, quality, {"choose": "accuracy"})


@pytest.fixture
def made() -> list[Making]:
    return []


@pytest.fixture
def workshop(fresh_home: Path, source: Artifact, usage: Workload, made: list[Making]) -> Workshop:
    return Workshop(source, usage=usage, told=made.append)


def candidate(*passes: str) -> Candidate:
    return Candidate(Settings(engine="llamacpp"), passes)


def test_a_shared_prefix_is_made_once_and_later_searches_find_it(
    workshop: Workshop, made: list[Making], source: Artifact, usage: Workload
) -> None:
    assert not workshop.is_made(candidate(DEPTH))
    shorter = workshop.artifact(candidate(DEPTH))
    both = workshop.artifact(candidate(DEPTH, RTN))
    assert shorter.shape.n_layers < source.shape.n_layers
    assert both.shape.n_layers == shorter.shape.n_layers
    assert "packed" in both.formats
    assert [step["pass"] for step in both.lineage] == ["depth", "rtn"]
    assert [m.passes for m in made] == [(DEPTH,), (DEPTH, RTN)]
    assert all(m.cpu_s > 0 and not m.error for m in made)
    later = Workshop(source, usage=usage, told=made.append)
    assert later.is_made(candidate(DEPTH, RTN))
    assert later.artifact(candidate(DEPTH, RTN)).sha256 == both.sha256
    assert len(made) == 2
    for other in (Workshop(source, usage=usage, seed=1), Workshop(source)):
        assert not other.is_made(candidate(DEPTH)), "another seed or text gives other weights"


def test_a_pass_that_does_not_fit_fails_its_candidate_with_the_reason(
    workshop: Workshop, made: list[Making]
) -> None:
    unfit = candidate("rtn:group=256")
    for _ in range(2):
        with pytest.raises(EngineError, match="256"):
            workshop.artifact(unfit)
    assert len(made) == 1, "what was refused once is not begun again"
    assert "256" in made[0].error


def test_when_the_search_is_killed_so_is_what_it_makes(fresh_home: Path, source: Artifact) -> None:
    """The worker is deep in its work and looks at nothing when its parent dies."""
    code = (
        "import sys; from negawatt.artifact import Artifact; from negawatt.engine import Settings; "
        "from negawatt.tuning.candidate import Candidate; from negawatt.tuning.workshop import Workshop; "
        f"Workshop(Artifact.open({str(source.path)!r})).artifact("
        f"Candidate(Settings(engine='llamacpp'), ({RTN!r},)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    worker = waited_for(lambda: next(iter(children_of(parent.pid)), 0))
    parent.kill()
    parent.wait()
    assert waited_for(lambda: not Path(f"/proc/{worker}").exists())


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def waited_for(known: Callable[[], int | bool], most_s: float = 60.0) -> int | bool:
    """What becomes known within some seconds."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        if found := known():
            return found
        time.sleep(0.05)
    pytest.fail("it did not come to pass")
