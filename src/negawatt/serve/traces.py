"""`Traces`: a span a request, by OpenTelemetry's conventions for generative AI, without what was said.

Spans are made of receipts, which hold neither prompt nor answer, so that none can get into a trace.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from negawatt import __version__
from negawatt.errors import UsageError, require
from negawatt.serve.receipt import UNASKED, Receipt

_OPERATIONS = {"chatcmpl": "chat", "cmpl": "text_completion"}
TIMEOUT_S = 5


class Traces:
    """Sends spans to a collector over OTLP/HTTP, some at a time, from a thread of its own.

    Args:
        url: of the collector, ``http://localhost:4318``; without a path ``/v1/traces`` is added. Headers that
            the environment names (``OTEL_EXPORTER_OTLP_HEADERS``) are sent along.

    Raises:
        UsageError: that is no such address.
        MissingDependency: the OpenTelemetry SDK is not installed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"expected an address such as http://localhost:4318, not {url!r}")
        sdk = require("opentelemetry.sdk.trace", extra="otlp")
        export = require("opentelemetry.sdk.trace.export", extra="otlp")
        wire = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otlp")
        resources = require("opentelemetry.sdk.resources", extra="otlp")
        self._kinds = require("opentelemetry.trace", extra="otlp")
        path = "/v1/traces" if parts.path in ("", "/") else parts.path
        resource = resources.Resource({"service.name": "negawatt", "service.version": __version__})
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = wire.OTLPSpanExporter(endpoint=parts._replace(path=path).geturl(), timeout=TIMEOUT_S)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("negawatt.serve", __version__)

    def receipt(self, receipt: Receipt) -> None:
        """A span of a settled request; warm-ups and idle time are none."""
        if receipt.outcome in UNASKED:
            return
        operation = _OPERATIONS.get(receipt.id.partition("-")[0], "text_completion")
        span = self._tracer.start_span(
            f"{operation} {receipt.model}",
            kind=self._kinds.SpanKind.SERVER,
            start_time=_ns(receipt.created_s),
            attributes={k: v for k, v in _attributes(operation, receipt).items() if v is not None},
        )
        if receipt.first_token_s is not None:
            span.add_event("first token", timestamp=_ns(receipt.created_s + receipt.first_token_s))
        if receipt.outcome not in ("completed", "escalated"):
            span.set_status(self._kinds.StatusCode.ERROR, receipt.outcome)
        span.end(end_time=_ns(receipt.created_s + receipt.duration_s))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _attributes(operation: str, receipt: Receipt) -> dict[str, Any]:
    energy = receipt.energy
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "negawatt",
        "gen_ai.response.model": receipt.model,
        "gen_ai.response.id": receipt.id,
        "gen_ai.response.time_to_first_chunk": receipt.first_token_s,
        "gen_ai.usage.input_tokens": receipt.input_tokens,
        "gen_ai.usage.output_tokens": receipt.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": receipt.cached_tokens,
        "error.type": None if receipt.outcome in ("completed", "escalated") else receipt.outcome,
        "negawatt.key.id": receipt.key_id or None,
        "negawatt.team": receipt.team or None,
        "negawatt.energy": energy.value_j,
        "negawatt.energy.low": energy.low_j,
        "negawatt.energy.high": energy.high_j,
        "negawatt.energy.provenance": str(energy.provenance),
        "negawatt.energy.boundary": receipt.boundary,
        "negawatt.carbon": None if receipt.carbon is None else receipt.carbon.value,
    }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
