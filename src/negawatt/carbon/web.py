"""HTTP for services that tell intensities: a deadline that holds, back-off, a cache that says its age."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from negawatt.errors import DownloadError, NegawattError, UsageError
from negawatt.home import home, write_json
from negawatt.request import Unanswered, Unusable, get_json

Authorize = Callable[[], Mapping[str, str]]
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said.

    Attributes:
        document: its JSON.
        obtained: when it said so; long ago where it came from the cache.
        problem: why the service could not be asked again now; empty when it was, or need not be.
    """

    document: Any
    obtained: datetime
    problem: str = ""

    def note(self, now: datetime | None = None) -> str:
        """Staleness in words; empty when there is nothing to say."""
        if not self.problem:
            return ""
        age = (now or datetime.now(UTC)) - self.obtained
        return f"as obtained {_length(age)} ago, because {self.problem}"


@dataclass(frozen=True)
class Service:
    """A JSON service behind a base address.

    Attributes:
        url: ``https://host/path``.
        headers: sent with every request; keys go here and never into addresses or the cache.
        deadline_s: seconds that one attempt may take, from connecting to the last byte.
        attempts: how often to try when there is no answer, or the service is busy or broken.
        pause_s: pause before the second attempt; it doubles each time, unless the service names one.
        longest_pause_s: a service that asks for a longer one is not asked again.
        fresh_s: an answer younger than this is taken from the cache.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float = 10.0
    attempts: int = 3
    pause_s: float = 0.5
    longest_pause_s: float = 10.0
    fresh_s: float = 900.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"expected an address such as https://example.org/v1, not {self.url!r}")

    def get(self, path: str, query: Mapping[str, str], authorize: Authorize | None = None) -> Answer:
        """The cached answer while it is fresh; else a new one; else the cached one with the reason.

        Args:
            path, query: what to ask for.
            authorize: gives headers that have to be asked for first; called only when needed.

        Raises:
            DownloadError: there is no answer and none in the cache, or the service refuses the key.
        """
        address = path + (f"?{urlencode(query)}" if query else "")
        file = self._file(address)
        cached = _read(file)
        if cached is not None and datetime.now(UTC) - cached.obtained < timedelta(seconds=self.fresh_s):
            return cached
        try:
            document = self.ask(address, authorize() if authorize else {})
        except Refused:
            raise  # a wrong key should be mended, not papered over with old figures
        except DownloadError as exc:
            if cached is None:
                raise
            return Answer(cached.document, cached.obtained, str(exc))
        answer = Answer(document, datetime.now(UTC))
        with suppress(NegawattError):  # a full disk costs the cache, not the answer
            write_json(
                file,
                {"url": self.url + address, "obtained": answer.obtained.isoformat(), "document": document},
            )
        return answer

    def ask(self, address: str, headers: Mapping[str, str]) -> Any:
        """Ask the service itself, again after a pause where that may help.

        Raises:
            Refused: it wants another key.
            DownloadError: no answer in time, a redirect, an error, or no JSON.
        """
        pause_s = self.pause_s
        for left in range(self.attempts - 1, -1, -1):
            try:
                return self._once(address, headers)
            except _Busy as exc:
                wanted_s = pause_s if exc.pause_s is None else exc.pause_s
                if not left or wanted_s > self.longest_pause_s:
                    raise DownloadError(str(exc)) from exc
                time.sleep(wanted_s)
                pause_s *= 2
        raise AssertionError("attempts is at least 1")

    def _once(self, address: str, more: Mapping[str, str]) -> Any:
        try:
            return get_json(
                self.url,
                address,
                {"Accept": "application/json", "User-Agent": "negawatt", **self.headers, **more},
                deadline_s=self.deadline_s,
                most_bytes=_MOST_BYTES,
                check=self._check,
            )
        except Unanswered as exc:
            raise _Busy(f"{self.url}: {exc}") from exc
        except Unusable as exc:
            raise DownloadError(f"{self.url}: {exc}") from exc

    def _check(self, response: http.client.HTTPResponse) -> None:
        status = f"{response.status} {response.reason}"
        if response.status in (401, 403):
            raise Refused(f"{self.url} refuses the key ({status}); check it, and what your plan covers")
        if 300 <= response.status < 400:  # never followed: the key would go along
            where = response.getheader("Location", "elsewhere")
            raise DownloadError(f"{self.url} redirects to {where}; name the address it should be asked at")
        if response.status == 429 or response.status >= 500:
            raise _Busy(f"{self.url}: {status}", _seconds(response.getheader("Retry-After")))
        if response.status != 200:
            raise DownloadError(f"{self.url}: {status}")

    def _file(self, address: str) -> Path:
        name = hashlib.sha256((self.url + address).encode()).hexdigest()[:32]
        return home() / "cache" / "carbon" / f"{name}.json"


class Refused(DownloadError):
    """The service wants a key, or another one."""


class _Busy(Exception):
    """Worth another attempt."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def _read(file: Path) -> Answer | None:
    """What the cache holds; a damaged entry is as good as none."""
    try:
        entry = json.loads(file.read_text("utf-8"))
        obtained = datetime.fromisoformat(entry["obtained"])
        return Answer(entry["document"], obtained) if obtained.tzinfo else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seconds(text: str | None) -> float | None:
    """``Retry-After`` in seconds; its other form, a date, is not used by these services."""
    return float(text) if text is not None and text.isdigit() else None


def _length(age: timedelta) -> str:
    seconds = age.total_seconds()
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.0f} s"
