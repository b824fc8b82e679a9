"""One HTTP request for JSON, with a deadline that holds from connecting to the last byte."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit


class Unanswered(Exception):
    """There was no whole answer, or not in time; says why."""


class Unusable(Exception):
    """There was an answer, and it is not what was asked for; says why."""


def get_json(
    url: str,
    path: str,
    headers: Mapping[str, str],
    *,
    deadline_s: float,
    most_bytes: int,
    check: Callable[[http.client.HTTPResponse], None],
) -> Any:
    """Fetch a path below a base address and return the JSON document. Redirects are not followed.

    Args:
        url: the base, ``http://host:port`` or ``https://…``, with an optional path.
        path: what to ask for, with its query.
        headers: sent along.
        deadline_s: seconds that all of it may take; each step of a slow drip is no new start.
        most_bytes: a longer answer is unusable.
        check: raises what the caller makes of a status; the body is read if it does not.

    Raises:
        Unanswered: no connection, none in time, or one that broke.
        Unusable: the answer is too long, or no JSON.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=deadline_s)
    late = threading.Event()
    sockets: list[socket.socket] = []  # http.client forgets its own once a response has begun

    def give_up() -> None:
        late.set()
        for opened in sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)  # wakes a read that waits for a slow drip

    timer = threading.Timer(deadline_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        connection.connect()
        sockets.append(connection.sock)
        connection.request("GET", parts.path.rstrip("/") + path, headers={**headers})
        response = connection.getresponse()
        check(response)
        body = response.read(most_bytes + 1)
    except (OSError, http.client.HTTPException) as exc:
        slow = late.is_set() or isinstance(exc, TimeoutError)
        why = f"no answer within {deadline_s:g} s" if slow else str(exc) or type(exc).__name__
        raise Unanswered(why) from exc
    finally:
        timer.cancel()
        connection.close()
    if late.is_set():
        raise Unanswered(f"no answer within {deadline_s:g} s")
    if len(body) > most_bytes:
        raise Unusable(f"the answer is longer than {most_bytes >> 20} MiB")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Unusable(f"expected JSON and got {body[:40]!r}") from exc
