"""Resumable downloads with nothing but the standard library."""

from __future__ import annotations

import errno
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from negawatt.errors import DownloadError

Progress = Callable[[float, float | None, str], None]
"""Called with (done, total or None, what is being done)."""

STALL_S = 20.0
"""A connection that is silent for so long is given up."""
ATTEMPTS = 3
_BLOCK = 1 << 18
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""Errors of the disk, which trying again does not mend."""


def read(url: str, *, accept: str = "*/*", limit_bytes: int = 64 << 20) -> bytes:
    """The body behind `url`, at most `limit_bytes` long.

    Raises:
        DownloadError: no answer, an error status, or a longer body.
    """
    try:
        with _open(url, {"Accept": accept}) as response:
            body: bytes = response.read(limit_bytes + 1)
    except (OSError, ValueError) as exc:
        raise DownloadError(f"cannot read {_shown(url)}: {_why(exc)}") from exc
    if len(body) > limit_bytes:
        raise DownloadError(f"{_shown(url)} is longer than {limit_bytes:,} bytes")
    return body


def download(url: str, target: Path, *, size_bytes: int, progress: Progress) -> None:
    """Fetch `url` into `target`, continuing what an earlier call left in ``target.part``.

    Exactly `size_bytes` are kept; a server that sends more or fewer is an error. What was
    fetched stays in the ``.part`` file when the connection breaks, so that a later call goes on.

    Raises:
        DownloadError: no answer within the deadline, an error status, or a wrong length.
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _continue(url, part, size_bytes, progress)
            break
        except urllib.error.HTTPError as exc:
            if exc.code == 416:  # what we have does not fit what the server has: start over
                part.unlink(missing_ok=True)
            if exc.code < 500 and exc.code != 416:
                raise DownloadError(
                    f"cannot fetch {_shown(url)}: the server says {exc.code} {exc.reason}"
                ) from exc
            failure: Exception = exc
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError) and exc.errno in _DISK:
                raise DownloadError(f"cannot write {part}: {exc.strerror}") from exc
            failure = exc
        if attempt == ATTEMPTS - 1:
            raise DownloadError(
                f"cannot fetch {_shown(url)}: {_why(failure)}; check the network and try again"
            ) from failure
        time.sleep(0.5 * 2**attempt)
    part.replace(target)


def _continue(url: str, part: Path, size_bytes: int, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > size_bytes:
        part.unlink()
        have = 0
    if have == size_bytes:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _open(url, headers) as response:
        if have and response.status != 206:  # no ranges here: start over
            have = 0
        with part.open("ab" if have else "wb") as out:
            while block := response.read(_BLOCK):
                have += len(block)
                if have > size_bytes:
                    raise DownloadError(f"{_shown(url)} is longer than the {size_bytes:,} bytes expected")
                out.write(block)
                progress(have, size_bytes, part.stem)
    if have < size_bytes:
        raise ConnectionError(f"the connection closed after {have:,} of {size_bytes:,} bytes")


def _open(url: str, headers: Mapping[str, str]):  # type: ignore[no-untyped-def]  # urllib's own is untyped
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"only http and https are fetched, not {url!r}")
    request = urllib.request.Request(url, headers={"User-Agent": "negawatt", **headers})  # noqa: S310
    return urllib.request.urlopen(request, timeout=STALL_S, context=_tls())  # noqa: S310


def _tls() -> ssl.SSLContext:
    """The default trust plus what the user told pip, curl or requests to trust."""
    for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if (path := os.environ.get(name)) and Path(path).is_file():
            return ssl.create_default_context(cafile=path)
    return ssl.create_default_context()


def _shown(url: str) -> str:
    """The address without user name and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('@', 1)[-1] if '@' in rest.split('/', 1)[0] else rest}"


def _why(exc: Exception) -> str:
    reason = getattr(exc, "reason", exc)
    if isinstance(reason, TimeoutError):
        return f"no answer within {STALL_S:.0f} s"
    return str(getattr(reason, "strerror", None) or reason)
