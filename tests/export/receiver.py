"""A collector of OpenTelemetry metrics on loopback: a real HTTP server that decodes the protobuf."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)


class Receiver:
    """Keeps what it is sent.

    Attributes:
        requests: every decoded request.
        status: what it answers; another than 200 to refuse.
        hang: set to let it never answer.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.status, self.hang = 200, threading.Event()
        self._over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/metrics"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportMetricsServiceRequest()
                request.ParseFromString(body)
                receiver.requests.append(request)
                if receiver.hang.is_set():
                    receiver._over.wait(30)
                answer = ExportMetricsServiceResponse().SerializeToString()
                self.send_response(receiver.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def points(self, name: str) -> list[tuple[float, dict[str, Any]]]:
        """Value and attributes of every point of a metric, in the last request that has it."""
        for request in reversed(self.requests):
            for metric in request.resource_metrics[0].scope_metrics[0].metrics:
                if metric.name == name:
                    found = metric.sum if metric.HasField("sum") else metric.gauge
                    return [(p.as_double, _attributes(p.attributes)) for p in found.data_points]
        return []


def _attributes(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, p.value.WhichOneof("value")) for p in pairs}
