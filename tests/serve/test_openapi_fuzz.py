"""Every route of the served OpenAPI document is asked for what it promises, and for what it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from live_server import MODEL, Live
from negawatt.artifact import Artifact
from negawatt.serve.openapi import document

EXAMPLES = 12
LONGEST_S = 20.0
OPERATIONS = sorted(
    (method.upper(), path)
    for path, methods in document()["paths"].items()
    for method in methods
)  # fmt: skip
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def live(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    options = ("--port", "0", "--batch", "4", "--threads", "1", "--max-context", "48", "--no-warm-up")
    with Live(tmp_path_factory.mktemp("fuzz"), MODEL, *options) as server:
        yield server


@pytest.fixture(scope="module")
def described(live: Live) -> Any:
    return schemathesis.openapi.from_url(f"{live.address}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_a_route_or_hangs(
    live: Live, described: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = described[path][method]
    session = requests.Session()

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def asks(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL  # any other name is only not found
        begun = time.monotonic()
        answer = case.call(base_url=live.address, session=session, timeout=LONGEST_S)
        assert time.monotonic() - begun < LONGEST_S
        if answer.status_code == 501 and path == "/v1/embeddings":
            return  # it says of itself that there is none
        case.validate_response(answer, checks=CHECKS)

    try:
        asks()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "what may be asked for cannot be generated"
    assert live.process.poll() is None and requests.get(f"{live.address}/ready", timeout=30).ok
