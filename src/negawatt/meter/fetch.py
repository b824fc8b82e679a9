"""HTTP for meters: one request, JSON back, a deadline that holds, and a sentence for every fault."""

from __future__ import annotations

import base64
import http.client
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from negawatt.errors import SensorError, UsageError
from negawatt.meter.sensor import SensorDenied
from negawatt.request import Unanswered, Unusable, get_json

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
        try:
            return get_json(
                self.url,
                path,
                self._headers(),
                deadline_s=self.deadline_s,
                most_bytes=_MOST_BYTES,
                check=self._check,
            )
        except (Unanswered, Unusable) as exc:
            raise SensorError(f"{self.url}: {exc}") from exc

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
