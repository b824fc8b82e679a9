"""HTTP for meters: one request, JSON back, a deadline that holds, and a sentence for every fault."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from negawatt.errors import SensorError, UsageError
from negawatt.meter.sensor import SensorDenied

_MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Server:
    """A server that answers JSON.

    Attributes:
        url: its base, ``http://host:port`` or ``https://…``, with an optional path.
        user, password: for basic authentication; empty for none.
        deadline_s: seconds that a request may take from connecting to the last byte.
    """

    url: str
    user: str = ""
    password: str = ""
    deadline_s: float = 3.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None:
            raise UsageError(f"the address of {parts.hostname} holds a user or password; give them apart")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"expected an address such as http://192.168.1.5, not {self.url!r}")

    def get(self, path: str) -> Any:
        """Fetch a path and return the JSON document.

        Raises:
            SensorDenied: the server wants other credentials.
            SensorError: it did not answer in time, redirected, or answered with something else.
        """
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.deadline_s)
        expired = threading.Event()
        sockets: list[socket.socket] = []  # http.client forgets its own once a response has begun

        def give_up() -> None:
            expired.set()
            for opened in sockets:
                with suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)  # wakes a read that waits for a slow drip

        timer = threading.Timer(self.deadline_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            sockets.append(connection.sock)
            connection.request("GET", parts.path.rstrip("/") + path, headers=self._headers())
            response = connection.getresponse()
            self._check(response)
            body = response.read(_MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as exc:
            late = expired.is_set() or isinstance(exc, TimeoutError)
            why = f"no answer within {self.deadline_s:g} s" if late else str(exc) or type(exc).__name__
            raise SensorError(f"{self.url}: {why}") from exc
        finally:
            timer.cancel()
            connection.close()
        if expired.is_set():
            raise SensorError(f"{self.url}: no answer within {self.deadline_s:g} s")
        if len(body) > _MOST_BYTES:
            raise SensorError(f"{self.url}: the answer is longer than {_MOST_BYTES >> 20} MiB")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise SensorError(f"{self.url}: expected JSON and got {body[:40]!r}") from exc

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self.user:
            token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            headers["Authorization"] = f"Basic {token}"
        return headers

    def _check(self, response: http.client.HTTPResponse) -> None:
        if response.status in (401, 403):
            raise SensorDenied(
                f"{self.url}: {response.status} {response.reason}",
                remedy="give the meter's user and password",
            )
        if 300 <= response.status < 400:
            where = response.getheader("Location", "elsewhere")
            raise SensorError(f"{self.url} redirects to {where}; name the address it should be asked at")
        if response.status != 200:
            raise SensorError(f"{self.url}: {response.status} {response.reason}")


def field(document: Any, *path: str | int, source: str) -> float:
    """A number inside a JSON document.

    Raises:
        SensorError: it is not there, or is no finite number.
    """
    here = document
    for key in path:
        try:
            here = here[key]
        except (KeyError, IndexError, TypeError) as exc:
            raise SensorError(f"{source}: the answer has no {'.'.join(map(str, path))}") from exc
    if isinstance(here, bool) or not isinstance(here, int | float) or not abs(here) < 1e300:
        raise SensorError(f"{source}: {'.'.join(map(str, path))} should be a number and is {here!r:.60}")
    return float(here)
