"""Doubles of devices that answer over HTTP, as real servers on the loopback interface.

Each keeps to the paths and the shape of answers that its maker documents, and to nothing else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = Callable[[], Any]


class JsonDevice:
    """An HTTP server that answers JSON at fixed paths.

    Attributes:
        power_w: watts that the device reports; set it to let power change.
        trouble: None, or how to misbehave: ``hang``, ``drip`` (a byte now and then), ``garbage``,
            ``redirect``, ``denied``, ``error``, ``empty`` (a JSON object with nothing in it) or
            ``babble`` (the body in `babble`, whatever is asked).
        elsewhere: where ``redirect`` points.
        asked: headers of every request so far.
        url: where it listens.
    """

    def __init__(self, power_w: float = 40.0) -> None:
        self.power_w = power_w
        self.trouble: str | None = None
        self.elsewhere, self.babble = "http://elsewhere.invalid/", b""
        self.asked: list[dict[str, str]] = []
        self._over = threading.Event()
        device = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                device._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def paths(self) -> Mapping[str, Answer]:
        """What it answers where."""
        return {}

    def __enter__(self) -> JsonDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unplug()

    def unplug(self) -> None:
        """Stop answering at all."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(request.headers))
        match self.trouble:
            case "hang":
                self._over.wait(30)
            case "drip":
                request.send_response(200)
                request.send_header("Content-Length", "1000")
                request.end_headers()
                while not self._over.wait(0.1):
                    request.wfile.write(b" ")
            case "garbage":
                self._send(request, 200, b"<html>It works!</html>")
            case "redirect":
                request.send_response(302)
                request.send_header("Location", self.elsewhere)
                request.end_headers()
            case "denied":
                self._send(request, 401, b"{}")
            case "error":
                self._send(request, 500, b"{}")
            case "babble":
                self._send(request, 200, self.babble)
            case "empty":
                self._send(request, 200, b"{}")
            case _:
                answer = self.paths().get(request.path)
                code = 404 if answer is None else 200
                self._send(request, code, json.dumps(None if answer is None else answer()).encode())

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, code: int, body: bytes) -> None:
        request.send_response(code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


class ShellyDouble(JsonDevice):
    """A Shelly plug of the second generation."""

    def paths(self) -> Mapping[str, Answer]:
        return {
            "/shelly": lambda: {"id": "shellyplusplugs-double", "gen": 2, "app": "PlusPlugS"},
            "/rpc/Switch.GetStatus?id=0": lambda: {
                "id": 0,
                "output": True,
                "apower": self.power_w,
                "voltage": 230.1,
                "aenergy": {"total": 1234.567},
            },
        }


class FirstShellyDouble(JsonDevice):
    """A Shelly plug of the first generation."""

    def paths(self) -> Mapping[str, Answer]:
        return {
            "/shelly": lambda: {"type": "SHPLG-S", "auth": False},
            "/meter/0": lambda: {"power": self.power_w, "is_valid": True, "total": 439237},
        }


class TasmotaDouble(JsonDevice):
    """A plug with Tasmota's firmware."""

    def paths(self) -> Mapping[str, Answer]:
        return {
            "/cm?cmnd=Status%2010": lambda: {
                "StatusSNS": {
                    "Time": "2026-01-01T00:00:00",
                    "ENERGY": {"Total": 12.345, "Power": round(self.power_w), "Voltage": 230},
                }
            }
        }


class PrometheusDouble(JsonDevice):
    """A server that answers the query ``watts`` as Prometheus does; for its faults, not its language."""

    def paths(self) -> Mapping[str, Answer]:
        sample = {"metric": {}, "value": [1.0, f"{self.power_w}"]}
        answer = {"status": "success", "data": {"resultType": "vector", "result": [sample]}}
        return {"/api/v1/query?query=watts": lambda: answer}


class RedfishDouble(JsonDevice):
    """A management controller with one chassis that tells its power the new way, and one the old way."""

    def paths(self) -> Mapping[str, Answer]:
        root = "/redfish/v1/Chassis"
        return {
            root: lambda: {"Members": [{"@odata.id": f"{root}/{n}"} for n in ("Rack", "Sled", "Fan")]},
            f"{root}/Rack": lambda: {
                "Id": "Rack",
                "EnvironmentMetrics": {"@odata.id": f"{root}/Rack/EnvironmentMetrics"},
            },
            f"{root}/Rack/EnvironmentMetrics": lambda: {"PowerWatts": {"Reading": self.power_w}},
            f"{root}/Sled": lambda: {
                "Id": "Sled",
                "Power": {"@odata.id": f"{root}/Sled/Power"},
                "Links": {"ContainedBy": {"@odata.id": f"{root}/Rack"}},
            },
            f"{root}/Sled/Power": lambda: {"PowerControl": [{"PowerConsumedWatts": self.power_w}]},
            f"{root}/Fan": lambda: {"Id": "Fan"},
        }
