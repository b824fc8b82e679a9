"""Addresses of Ray clusters, and whether anything is there."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from negawatt.errors import NegawattError, UsageError

REACHED_WITHIN_S = 10.0
"""Seconds for something to answer at the address."""


def refuse_silent(address: str) -> None:
    """Fail within seconds where nothing listens; Ray itself would try for minutes.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        UsageError: it is no address.
        NegawattError: nothing listens there.
    """
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("", "ray") or not host or (port is None and not parts.scheme) or parts.path:
        raise UsageError(f"a Ray cluster is auto, HOST:PORT or ray://HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, port or 10001), timeout=REACHED_WITHIN_S).close()
    except OSError as exc:
        raise NegawattError(f"nothing answers at {address}: {exc.strerror or exc}") from exc
