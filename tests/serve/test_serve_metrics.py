"""Metrics as Prometheus reads them, spans as a collector gets them, examples that their tools accept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_collector import collecting
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from negawatt.carbon import GRAMS, Amount
from negawatt.energy import Energy
from negawatt.errors import UsageError
from negawatt.serve import Receipt
from negawatt.serve.budget import Budget, Period, Spending, Use
from negawatt.serve.metrics import Metrics
from negawatt.serve.traces import Traces

ROOT = Path(__file__).parents[2]


def receipt(**changes: Any) -> Receipt:
    made = Receipt(
        *("chatcmpl-1", "k1", "red", "small", 1.5e9, "completed", 20, 5, 11),
        prefill=Energy.estimated(2.0, 1.0, 3.0, "CPU time"),
        decode=Energy.estimated(4.0, 2.0, 6.0, "CPU time"),
        idle=Energy.estimated(1.0, 0.5, 2.0, "CPU time"),
        boundary="chip",
        cpu_s=0.5,
        queued_s=0.01,
        first_token_s=0.2,
        duration_s=1.2,
        carbon=Amount.estimated(0.002, 0.001, 0.004, GRAMS, "stated"),
    )
    return replace(made, **changes)


def scraped(metrics: Metrics) -> tuple[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """The page, and every sample by name and labels."""
    page = TestClient(Starlette(routes=[metrics.route])).get("/metrics").text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    return page, samples


def total(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    found = [v for (n, has), v in samples.items() if n == name and labels.items() <= dict(has).items()]
    assert found, f"no {name} with {labels}"
    return sum(found)


def test_receipts_are_counted_under_vllm_s_names_and_ours() -> None:
    metrics = Metrics(lambda: [])
    for _ in range(3):
        metrics.receipt(receipt())
    metrics.receipt(receipt(outcome="aborted", output_tokens=1, first_token_s=None))
    metrics.receipt(receipt(id="w", outcome="warm-up", input_tokens=0, output_tokens=0))
    _, samples = scraped(metrics)
    assert total(samples, "vllm:prompt_tokens_total", model_name="small") == 80
    assert total(samples, "vllm:generation_tokens_total") == 34
    assert total(samples, "vllm:prefix_cache_hits_total") == 20
    assert total(samples, "vllm:time_to_first_token_seconds_count") == 3
    assert total(samples, "vllm:e2e_request_latency_seconds_count") == 4
    assert total(samples, "vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.3)
    assert total(samples, "negawatt_requests_total", outcome="aborted") == 1
    assert total(samples, "negawatt_serve_joules_total") == pytest.approx(5 * 7.0)
    assert total(samples, "negawatt_serve_joules_total", phase="decode", outcome="completed") == 12.0
    assert total(samples, "negawatt_serve_low_joules_total", provenance="estimated") == pytest.approx(5 * 3.5)
    assert total(samples, "negawatt_serve_high_joules_total") == pytest.approx(5 * 11.0)
    assert total(samples, "negawatt_serve_grams_total") == pytest.approx(0.01)


def test_missing_joules_are_counted_as_missing_never_as_0() -> None:
    metrics = Metrics(lambda: [])
    metrics.receipt(receipt(decode=Energy.missing("the counter died")))
    _, samples = scraped(metrics)
    assert total(samples, "negawatt_serve_missing_energy_total") == 1
    assert not any(("phase", "decode") in labels for _, labels in samples)
    assert not any(name == "negawatt_request_joules_count" for name, _ in samples)


def test_budgets_and_batches_are_told() -> None:
    budget = Budget("team:red", Period("day"), joules=100.0, tokens=50)
    uses = [Use(budget, Spending(joules=40.0, tokens=7), Spending(joules=10.0))]
    _, samples = scraped(Metrics(lambda: [], lambda: uses, lambda: 12))
    assert total(samples, "negawatt_budget_limit", owner="team:red", kind="joules") == 100
    assert total(samples, "negawatt_budget_spent", kind="joules") == 40
    assert total(samples, "negawatt_budget_held", kind="joules") == 10
    assert total(samples, "negawatt_budget_limit", kind="tokens") == 50
    assert total(samples, "negawatt_batch_requests_waiting") == 12


def test_answers_are_counted_by_status() -> None:
    metrics = Metrics(lambda: [])
    client = TestClient(metrics.counted(Starlette(routes=[metrics.route])))
    for path in ("/metrics", "/v1/models/none", "/secret-path-of-a-client"):
        client.get(path)
    page, samples = scraped(metrics)
    assert total(samples, "negawatt_http_responses_total", path="/v1/models", status="404") == 1
    assert total(samples, "negawatt_http_responses_total", path="other", status="404") == 1
    assert "secret-path" not in page


def test_promtool_accepts_names_and_types() -> None:
    metrics = Metrics(
        lambda: [], lambda: [Use(Budget("server", Period("day"), joules=1.0), Spending(), Spending())]
    )
    metrics.receipt(receipt())
    program = needed("promtool", "prometheus")
    page, _ = scraped(metrics)
    # The linter of names frowns at colons, which vLLM's names have.
    own = page.replace("vllm:", "vllm_")
    done = subprocess.run(
        [program, "check", "metrics"], input=own, text=True, capture_output=True, check=False
    )
    assert "error" not in done.stderr.lower(), done.stderr
    assert done.returncode in (0, 3), done.stderr


# -- traces --------------------------------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP collector on loopback: its address and the spans it has got."""
    spans: list[Any] = []

    def took(path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        asked = ExportTraceServiceRequest()
        asked.ParseFromString(body)
        spans.extend(s for r in asked.resource_spans for scope in r.scope_spans for s in scope.spans)

    with collecting(took) as address:
        yield address, spans


def test_a_span_a_request_with_the_conventions_names(collector: tuple[str, list[Any]]) -> None:
    url, spans = collector
    traces = Traces(url)
    traces.receipt(receipt())
    traces.receipt(receipt(id="cmpl-2", outcome="failed", decode=Energy.missing("died"), first_token_s=None))
    traces.receipt(receipt(outcome="idle"))
    traces.close()
    assert [span.name for span in spans] == ["chat small", "text_completion small"]
    good, bad = spans
    held = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in good.attributes}
    assert held["gen_ai.operation.name"] == "chat"
    assert (held["gen_ai.usage.input_tokens"], held["gen_ai.usage.output_tokens"]) == (20, 11)
    assert held["negawatt.energy"] == 7.0 and held["negawatt.energy.provenance"] == "estimated"
    assert good.end_time_unix_nano - good.start_time_unix_nano == pytest.approx(1.2e9, rel=1e-6)
    assert good.events[0].name == "first token"
    keys = {a.key for a in bad.attributes}
    assert "error.type" in keys and "negawatt.energy" not in keys
    assert bad.status.code == 2


def test_no_address_is_no_collector() -> None:
    with pytest.raises(UsageError, match="address"):
        Traces("localhost:4318")


# -- examples ------------------------------------------------------------------------------------------


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        message = f"{program} is not installed; apt-get install {package}"
        pytest.fail(message) if os.environ.get("CI") and package != "systemd" else pytest.skip(message)
    return found


def test_promtool_accepts_the_alerts_and_their_metrics_exist() -> None:
    rules = ROOT / "deploy/alerts.yml"
    program = needed("promtool", "prometheus")
    done = subprocess.run([program, "check", "rules", rules], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"\b(?:negawatt_\w+|vllm:\w+)", rules.read_text()))
    source = (ROOT / "src/negawatt/serve/metrics.py").read_text()
    for name in named:
        plain = re.sub(r"_(?:bucket|total)$", "", name)
        assert plain in source or plain.replace("negawatt_serve_", "negawatt_serve_{bound}") in source, name


def test_keda_asks_for_replicas_by_load_within_the_power(tmp_path: Path) -> None:
    """Prometheus itself answers the query of the example, on series as servers give them."""
    program = needed("promtool", "prometheus")
    (trigger,) = yaml.safe_load((ROOT / "deploy/keda.yml").read_text("utf-8"))["spec"]["triggers"]
    assert (trigger["type"], trigger["metadata"]["threshold"]) == ("prometheus", "1")
    rules = {
        "groups": [{"name": "keda", "rules": [{"record": "wanted", "expr": trigger["metadata"]["query"]}]}]
    }
    (tmp_path / "rules.yml").write_text(json.dumps(rules), "utf-8")

    def case(loads: list[float], watts: list[float], wanted: float) -> dict[str, Any]:
        """Servers of so much load, each charging so many joules a second; by their numbers."""
        load = [
            {"series": f'negawatt_load{{instance="{n}",model_name="m"}}', "values": f"{load}x20"}
            for n, load in enumerate(loads)
        ]
        name = "negawatt_serve_joules_total"
        joules = [
            {"series": f'{name}{{instance="{n}",phase="{phase}"}}', "values": f"0+{30 * each}x20"}
            for n, each in enumerate(watts)
            for phase in ("prefill", "decode")
        ]
        sample = {"labels": "wanted", "value": wanted}
        asked = {"expr": "wanted", "eval_time": "10m", "exp_samples": [sample]}
        return {"interval": "1m", "input_series": load + joules, "promql_expr_test": [asked]}

    tests = {
        "rule_files": [str(tmp_path / "rules.yml")],
        "tests": [
            case([0.4], [50.0], 0.5),  # half a server's work
            case([2.0, 1.2], [50.0, 50.0], 4.0),  # four servers' work, and eight would be allowed
            case([4.0, 4.0], [100.0, 100.0], 4.0),  # ten servers' work, and 400 W are enough for four
            case([4.0, 4.0], [100.0, 0.0], 4.0),  # by those that work
            case([4.0], [], 5.0),  # nothing was charged yet
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(tests), "utf-8")
    done = subprocess.run([program, "test", "rules", file], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_on_what_they_are_about(tmp_path: Path) -> None:
    program = needed("promtool", "prometheus")
    series = [
        {"series": 'negawatt_budget_spent{owner="team:red",period="day",kind="joules"}', "values": "95x10"},
        {"series": 'negawatt_budget_limit{owner="team:red",period="day",kind="joules"}', "values": "100x10"},
        {"series": 'negawatt_model_state{model_name="small",state="failed"}', "values": "0x3 1x7"},
    ]
    labels = {"owner": "team:red", "period": "day", "kind": "joules", "severity": "warn"}
    summary = "team:red has spent 95% of its joules per day"
    tests = {
        "rule_files": [str(ROOT / "deploy/alerts.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {
                        "eval_time": "5m",
                        "alertname": "NegawattBudgetNearlySpent",
                        "exp_alerts": [{"exp_labels": labels, "exp_annotations": {"summary": summary}}],
                    },
                    {"eval_time": "3m", "alertname": "NegawattModelFailed", "exp_alerts": []},
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps(tests))
    done = subprocess.run([program, "test", "rules", file], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    program = needed("systemd-analyze", "systemd")
    unit = tmp_path / "negawatt.service"
    unit.write_text(
        (ROOT / "deploy/negawatt.service").read_text().replace("/opt/negawatt/bin/negawatt", "/bin/true")
    )
    done = subprocess.run([program, "verify", unit], text=True, capture_output=True, check=False)
    assert unit.name not in done.stderr, done.stderr


def test_the_container_file_names_extras_that_exist() -> None:
    text = (ROOT / "deploy/Containerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [named] = re.findall(r"/source\[([\w,]+)\]", text)
    assert set(named.split(",")) <= set(extras)
    assert "USER negawatt" in text
