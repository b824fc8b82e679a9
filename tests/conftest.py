"""Shared fixtures: the real model, pulled once, and homes that tests may write to."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before any library is imported: no test waits for a hub or reports home.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["OPENVINO_TELEMETRY_OPT_OUT"] = "1"
os.environ.setdefault("NEGAWATT_HOME", str(Path(__file__).parents[1] / ".negawatt"))

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", os.path.join(os.environ["NEGAWATT_HOME"], "keras"))  # not the user's own

from hypothesis import settings

from negawatt import catalog
from negawatt.artifact import Artifact
from negawatt.workload import Workload

settings.register_profile("shared machine", deadline=None)  # slow is no failure here; a hang still is
settings.load_profile("shared machine")

# A shell that runs the tests in the background makes them ignore Ctrl-C, and all they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

MAKING = {"artifact", "carbon", "catalog", "compress", "conversion", "limits", "report", "workload"}
"""Folders of tests of arithmetic and files, which can run beside those that watch machine and engines."""
MAKING_FILES = {
    f"test_{name}.py"
    for name in (
        "books", "budgets", "classifiers", "deferral", "docs", "embedders", "judge", "keys",
        "ledger", "limits", "observed", "onnxruntime", "onnxruntime_contract", "placement", "predictor",
        "project", "proofs", "receipt", "redact", "sampler", "scaling", "serve_config", "space",
        "space_file", "store", "study", "torch_placement", "writing",
    )
}  # fmt: skip
"""The same among the other folders."""


def is_making(path: str) -> bool:
    """Whether the tests of a file belong to the group that makes."""
    parts = path.split("/")
    return bool(MAKING.intersection(parts) or MAKING_FILES.intersection(parts))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For two workers (``pytest -n 2``): one takes all that measures, the other what makes, file by file; the
    first helps it when it is through.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(nodeid.split("::")[0])
            return file if is_making(file) else "measuring"

    return Groups(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What makes keeps to one core and steps back for what measures; threads of two that wait for each other
    at barriers would burn more time than the tests take."""
    if (
        is_making(item.nodeid.split("::")[0])
        and "PYTEST_XDIST_WORKER" in os.environ
        and os.nice(0) == 0
        and hasattr(os, "sched_setaffinity")
    ):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(cores)]})
        os.nice(10)
        if "torch" in sys.modules:  # it counted the cores when it was imported
            sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def llamacpp_runtime() -> Path:
    """The one engine that has to be pulled, pulled once into the shared home."""
    return catalog.pull("llamacpp")


@pytest.fixture(scope="session")
def model(llamacpp_runtime: Path) -> Artifact:
    """SmolLM2-135M-Instruct, pulled once into the shared home, with the engine that has to be pulled too."""
    return Artifact.open("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def piqa() -> Workload:
    """Chat traffic judged on PIQA, pulled once into the shared home."""
    catalog.pull("piqa")
    return Workload.open("chat-piqa")


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of its own, for tests that write."""
    place = tmp_path / "home"
    monkeypatch.setenv("NEGAWATT_HOME", str(place))
    return place


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A real PostgreSQL server on loopback, as `postgres_server.Server`."""
    from postgres_server import running

    with running() as server:
        yield server
