"""`Metrics`: what Prometheus scrapes of a server.

vLLM's names where the same is meant, and joules, grams, budgets and batches. A figure that is missing has no
series and is counted as missing; it is never 0. Joules carry their provenance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from negawatt.energy import Energy
from negawatt.errors import require
from negawatt.serve.admission import Caller, Refused
from negawatt.serve.budget import KINDS, Use
from negawatt.serve.census import Census
from negawatt.serve.model import ServedModel
from negawatt.serve.receipt import UNASKED, Receipt

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_JOULES = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 1e5)
_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/files",
    "/v1/batches",
)


class Metrics:
    """Counts receipts and answers, and looks at models, budgets and batches when it is asked.

    Args:
        models: those served; asked at every scrape for what runs and waits.
        uses: every budget with what of it is gone; called in a thread.
        batch_requests: how many requests of batches are not done; called in a thread.
        may_read: whether a caller may scrape: the page tells of every team's budgets.
        unwritten: receipts that are not in the ledger yet.

    Raises:
        MissingDependency: prometheus-client is not installed.
    """

    def __init__(
        self,
        models: Callable[[], Sequence[ServedModel]],
        uses: Callable[[], Sequence[Use]] = lambda: (),
        batch_requests: Callable[[], int] = lambda: 0,
        may_read: Callable[[Caller], bool] = lambda caller: True,
        unwritten: Callable[[], int] = lambda: 0,
    ) -> None:
        client = require("prometheus_client", extra="prometheus")
        self._models, self._uses, self._batch_requests = models, uses, batch_requests
        self._may_read, self._client, self._unwritten = may_read, client, unwritten
        self._registry = registry = client.CollectorRegistry()

        def histogram(name: str, words: str, buckets: Sequence[float]) -> Any:
            return client.Histogram(name, words, ["model_name"], buckets=buckets, registry=registry)

        def counter(name: str, words: str, *labels: str) -> Any:
            return client.Counter(name, words, labels, registry=registry)

        self._prompt = counter("vllm:prompt_tokens", "Tokens of prompts.", "model_name")
        self._generated = counter("vllm:generation_tokens", "Tokens generated.", "model_name")
        self._queries = counter("vllm:prefix_cache_queries", "Tokens looked for in it.", "model_name")
        self._hits = counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", "model_name")
        self._first = histogram("vllm:time_to_first_token_seconds", "From arrival to first token.", _SECONDS)
        self._whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to end.", _SECONDS)
        self._queued = histogram("vllm:request_queue_time_seconds", "From arrival to first step.", _SECONDS)
        self._each = histogram(
            "vllm:request_time_per_output_token_seconds", "A token after the first, in the mean.", _SHORT
        )
        self._prompt_size = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._size = histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._joules_each = histogram("negawatt_request_joules", "Joules of a request.", _JOULES)
        self._requests = counter("negawatt_requests", "Requests settled.", "model_name", "outcome")
        energy = ("model_name", "outcome", "phase", "provenance")
        self._joules = [
            counter(f"negawatt_serve_{bound}joules", f"Joules charged: {what}.", *energy)
            for bound, what in (("", "best figure"), ("low_", "lower bound"), ("high_", "upper bound"))
        ]
        self._missing = counter("negawatt_serve_missing_energy", "Receipts without joules.", "model_name")
        self._grams = counter("negawatt_serve_grams", "Grams of CO2 equivalent charged.", "model_name")
        self._cost = counter("negawatt_serve_cost", "Money charged.", "model_name", "currency")
        self._cpu = counter("negawatt_serve_cpu_seconds", "CPU seconds of workers charged.", "model_name")
        self._answers = counter("negawatt_http_responses", "Answers by status.", "path", "status")

    # -- counting ---------------------------------------------------------------------------------

    def receipt(self, receipt: Receipt) -> None:
        """Count a receipt."""
        model = receipt.model
        self._requests.labels(model, receipt.outcome).inc()
        self._cpu.labels(model).inc(max(0.0, receipt.cpu_s))
        for phase in ("prefill", "decode", "idle"):
            self._count_energy(receipt, phase, getattr(receipt, phase))
        if receipt.carbon is not None and receipt.carbon.value is not None:
            self._grams.labels(model).inc(max(0.0, receipt.carbon.value))
        if receipt.cost is not None and receipt.cost.value is not None and receipt.cost.value > 0:
            self._cost.labels(model, receipt.cost.unit).inc(receipt.cost.value)
        if receipt.outcome in UNASKED:
            return
        self._prompt.labels(model).inc(receipt.input_tokens)
        self._generated.labels(model).inc(receipt.output_tokens)
        self._queries.labels(model).inc(receipt.input_tokens)
        self._hits.labels(model).inc(receipt.cached_tokens)
        self._prompt_size.labels(model).observe(receipt.input_tokens)
        self._size.labels(model).observe(receipt.output_tokens)
        self._whole.labels(model).observe(receipt.duration_s)
        self._queued.labels(model).observe(receipt.queued_s)
        if receipt.energy.value_j is not None:
            self._joules_each.labels(model).observe(receipt.energy.value_j)
        if receipt.first_token_s is not None:
            self._first.labels(model).observe(receipt.first_token_s)
            if receipt.output_tokens > 1:
                after_s = receipt.duration_s - receipt.first_token_s
                self._each.labels(model).observe(after_s / (receipt.output_tokens - 1))

    def _count_energy(self, receipt: Receipt, phase: str, energy: Energy) -> None:
        ends = (energy.value_j, energy.low_j, energy.high_j)
        if energy.is_missing:
            self._missing.labels(receipt.model).inc()
        for counter, joules in zip(self._joules, ends, strict=True):
            if (
                joules is not None and joules > 0
            ):  # a counter cannot fall; a share below 0 is an error bar's end
                counter.labels(receipt.model, receipt.outcome, phase, str(energy.provenance)).inc(joules)

    def counted(self, app: ASGIApp) -> ASGIApp:
        """The application, its answers counted by path and status."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    known = next((p for p in _PATHS if scope["path"].startswith(p)), "other")
                    self._answers.labels(known, str(message["status"])).inc()
                await send(message)

            await app(scope, receive, seen if scope["type"] == "http" else send)

        return counting

    # -- telling ----------------------------------------------------------------------------------

    @property
    def route(self) -> Route:
        """``/metrics``, for those who may read it."""
        return Route("/metrics", self._scraped, methods=["GET"])

    async def _scraped(self, request: Request) -> Response:
        if not self._may_read(getattr(request.state, "caller", Caller())):
            raise Refused(
                "this key's team may not read metrics",
                status=403,
                kind="permission_error",
                code="not_allowed",
            )
        uses, waiting = await asyncio.to_thread(lambda: (self._uses(), self._batch_requests()))
        gauges = self._client.CollectorRegistry()
        found = [*self._of_models(), *self._of_process(), *self._of_budgets(uses), *self._of_batches(waiting)]
        gauges.register(_Found(found))
        body = self._client.generate_latest(self._registry) + self._client.generate_latest(gauges)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _of_models(self) -> Iterator[Any]:
        core = require("prometheus_client.core", extra="prometheus")
        running = core.GaugeMetricFamily(
            "vllm:num_requests_running", "Requests being answered.", labels=["model_name"]
        )
        waiting = core.GaugeMetricFamily(
            "vllm:num_requests_waiting", "Requests in the queue.", labels=["model_name"]
        )
        load = core.GaugeMetricFamily(
            "negawatt_load",
            "Requests running and waiting over those that run at once.",
            labels=["model_name"],
        )
        asleep = core.GaugeMetricFamily(
            "negawatt_model_state", "1 for the state it is in.", labels=["model_name", "state"]
        )
        for model in self._models():
            name, busy = model.name, model.busy
            running.add_metric([name], busy - model.waiting)
            waiting.add_metric([name], model.waiting)
            load.add_metric([name], busy / model.options.settings.batch)
            for state in ("asleep", "loading", "ready", "failed"):
                asleep.add_metric([name, state], float(model.state == state))
        return iter((running, waiting, load, asleep))

    def _of_process(self) -> Iterator[Any]:
        core = require("prometheus_client.core", extra="prometheus")
        census = Census.of(self._models())
        sequences = core.GaugeMetricFamily(
            "negawatt_sequences",
            "Sequences under way, as each part of the server counts them.",
            labels=["by"],
        )
        for by, count in (("jobs", census.jobs), ("books", census.accounts), ("cache", census.sequences)):
            sequences.add_metric([by], count)
        cells = core.GaugeMetricFamily(
            "negawatt_kv_tokens", "Tokens of the caches: kept, and promised to sequences.", labels=["what"]
        )
        cells.add_metric(["kept"], census.kept_tokens)
        cells.add_metric(["promised"], census.promised_tokens)
        yield from (sequences, cells)
        yield core.GaugeMetricFamily("negawatt_tasks", "Tasks of the event loop.", value=census.tasks)
        if census.descriptors is not None:
            yield core.GaugeMetricFamily(
                "process_open_fds", "Open files and sockets of the server.", value=census.descriptors
            )
        yield core.GaugeMetricFamily(
            "negawatt_receipts_waiting", "Receipts not in the ledger yet.", value=self._unwritten()
        )

    def _of_budgets(self, uses: Sequence[Use]) -> Iterator[Any]:
        core = require("prometheus_client.core", extra="prometheus")
        labels = ["owner", "period", "kind"]
        limits = core.GaugeMetricFamily(
            "negawatt_budget_limit", "What may be spent in a period.", labels=labels
        )
        spent = core.GaugeMetricFamily(
            "negawatt_budget_spent", "What was spent in the period.", labels=labels
        )
        held = core.GaugeMetricFamily("negawatt_budget_held", "What running requests hold.", labels=labels)
        for use in uses:
            rows = zip(KINDS, use.budget.limits, use.spent.values, use.held.values, strict=True)
            for kind, limit, gone, holding in rows:
                if limit is None:
                    continue
                names = [use.budget.owner, use.budget.period.text, kind]
                limits.add_metric(names, limit)
                spent.add_metric(names, gone)
                held.add_metric(names, holding)
        return iter((limits, spent, held))

    def _of_batches(self, waiting: int) -> Iterator[Any]:
        core = require("prometheus_client.core", extra="prometheus")
        yield core.GaugeMetricFamily(
            "negawatt_batch_requests_waiting", "Requests of batches that are not done.", value=waiting
        )


class _Found:
    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families
