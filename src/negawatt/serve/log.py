"""Structured logs: a JSON object a line, with no prompt, no answer and no secret in it."""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from negawatt.errors import NegawattError

FIELDS = frozenset(
    {
        *("request_id", "key_id", "team", "model", "outcome", "status", "method", "path", "error"),
        *("input_tokens", "cached_tokens", "output_tokens", "joules", "grams", "provenance"),
        *("queued_s", "first_token_s", "duration_s", "batch_id", "file_id", "redacted"),
    }
)
"""What a record may carry beside its message (``extra=``); anything else is dropped, whatever it holds."""

_OURS = ("negawatt", "uvicorn")
"""Loggers whose words are told; those of other libraries may quote what a client sent."""
_TEXT_BYTES = 500
_SECRETS = re.compile(
    r"nw-[0-9a-f]{12}-[\w-]+"  # our keys
    r"|\b(?:sk|pk|rk)-[\w-]{8,}"  # others'
    r"|(?<=bearer )\S+|(?<=basic )\S+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user and password in a URL
    r"|(?<=password=)\S+|(?<=api_key=)\S+|(?<=token=)\S+|(?<=secret=)\S+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text with keys, tokens and passwords struck out."""
    return _SECRETS.sub("…", text)


class JsonFormatter(logging.Formatter):
    """``{"time":…, "level":…, "logger":…, "message":…}`` and the record's `FIELDS`.

    An exception is told by its kind and where it came from. Its own words are not: they may quote what a
    client sent. Only our own errors' are, and the system's (`OSError`).
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(_words(record))[:_TEXT_BYTES],
        }
        for name in sorted(FIELDS & record.__dict__.keys()):
            value = record.__dict__[name]
            line[name] = without_secrets(value)[:_TEXT_BYTES] if isinstance(value, str) else value
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _told(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=lambda value: type(value).__name__)


def _words(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] in _OURS:
        return record.getMessage()
    return f"a library's message, at {record.module}:{record.lineno}"


def _told(exc: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(exc.__traceback__)
    told: dict[str, Any] = {
        "kind": type(exc).__qualname__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
    }
    if isinstance(exc, NegawattError):
        told["message"] = without_secrets(str(exc))[:_TEXT_BYTES]
    elif isinstance(exc, OSError):
        told["message"] = exc.strerror
    return told


def begin_process() -> None:
    """Log as servers do, and leave no image of this process where it crashes: prompts would be in it.

    Workers inherit the latter.
    """
    log_to()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def log_to(stream: TextIO = sys.stderr, level: str = "INFO") -> logging.Handler:
    """Write what this process says to a stream, as JSON, and nothing of it anywhere else.

    Libraries' warnings are told without their words. The web server's lines about each request are left out:
    they hold the query string, and the application writes its own.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.WARNING
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)
    for name in ("uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.getLogger("uvicorn.access").disabled = True
    return handler
