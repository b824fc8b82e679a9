"""`Batch`: requests that can wait, from their file to the files of answers and errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.energy import Energy
from negawatt.serve.admission import Refused
from negawatt.serve.limits import json_depth

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MOST_ITEMS = 50_000
MOST_DEPTH = 32
WINDOW_S = (60, 31 * 86400)
"""Of completion windows, the shortest and the longest."""

_WINDOW = re.compile(r"(\d{1,5})([mhd])")
_UNIT_S = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of the table; times in seconds since the epoch, those that have not come are None.

    Attributes:
        owner: the team or key that may see it; `key_id` is the key that pays.
        deadline_s: when every request has to have been answered.
        status: OpenAI's: ``validating``, ``in_progress``, ``completed``, ``failed``, ``expired``,
            ``cancelling``, ``cancelled``.
        output_bytes, error_bytes: how much of the parts being written counts.
    """

    id: str
    owner: str
    key_id: str
    endpoint: str
    input_file: str
    completion_window: str
    created_s: float
    deadline_s: float
    status: str
    metadata: str
    errors: str
    total: int
    completed: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None
    began_s: float | None = None
    ended_s: float | None = None
    cancelling_s: float | None = None
    output_bytes: int = 0
    error_bytes: int = 0
    runner: str = ""
    runner_until_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        ended = None if self.ended_s is None else int(self.ended_s)
        errors = json.loads(self.errors)

        def when(status: str) -> int | None:
            return ended if self.status == status else None

        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": int(self.created_s),
            "in_progress_at": None if self.began_s is None else int(self.began_s),
            "expires_at": int(self.deadline_s),
            "finalizing_at": None,
            "completed_at": when("completed"),
            "failed_at": when("failed"),
            "expired_at": when("expired"),
            "cancelling_at": None if self.cancelling_s is None else int(self.cancelling_s),
            "cancelled_at": when("cancelled"),
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": json.loads(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch.

    Attributes:
        number: of its line, from 0.
        custom_id: what the client calls it.
        place, length: of its line in the input file, in bytes.
        units: how much work it is thought to be, in `work_units`.
    """

    number: int
    custom_id: str
    place: int
    length: int
    units: float


@dataclass(frozen=True, slots=True)
class Slice:
    """A while in which a batch ran, what it cost, and how much work was done."""

    start_s: float
    end_s: float
    energy: Energy
    units: float


def window_s(text: Any) -> int:
    """Seconds of a completion window such as ``24h``.

    Raises:
        Refused: it is none, too short or too long.
    """
    match = _WINDOW.fullmatch(text) if isinstance(text, str) else None
    found = int(match[1]) * _UNIT_S[match[2]] if match else 0
    if not WINDOW_S[0] <= found <= WINDOW_S[1]:
        raise Refused(
            "expected a completion_window from 1m to 31d, such as 24h", status=400, param="completion_window"
        )
    return found


def work_units(body: dict[str, Any]) -> float:
    """How much work a request is thought to be: tokens to write, and a fortieth of the characters to read."""
    if "input" in body:  # of embeddings nothing is written
        return len(json.dumps(body["input"])) / 40
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    n = body.get("n")
    written = float(most) if isinstance(most, int) and most > 0 else 256.0
    times = float(n) if isinstance(n, int) and n > 0 else 1.0
    return written * times + len(json.dumps(body.get("messages") or body.get("prompt") or "")) / 40


def read_items(path: Path, endpoint: str) -> tuple[list[Item], list[dict[str, Any]]]:
    """The requests in an input file, and what is wrong with it in OpenAI's form: code, message and line."""
    items: list[Item] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    place = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            here, place = place, place + len(line)
            if not line.strip():
                continue
            problem = _problem(line, endpoint, seen)
            if isinstance(problem, str):
                errors.append({"code": "invalid_line", "message": problem, "line": number, "param": None})
            else:
                custom_id, body = problem
                items.append(Item(len(items), custom_id, here, len(line), work_units(body)))
            if len(errors) >= 20 or len(items) > MOST_ITEMS:
                break
    if len(items) > MOST_ITEMS:
        errors.append(_whole(f"expected at most {MOST_ITEMS} requests"))
    if not items and not errors:
        errors.append(_whole("the file holds no request"))
    return items, errors


def _whole(message: str) -> dict[str, Any]:
    return {"code": "invalid_file", "message": message, "line": None, "param": None}


def _problem(line: bytes, endpoint: str, seen: set[str]) -> str | tuple[str, dict[str, Any]]:
    """What is wrong with a line, or its custom_id and body."""
    if json_depth(line) > MOST_DEPTH:
        return f"expected at most {MOST_DEPTH} objects and lists within each other"
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return "expected one JSON object a line"
    if not isinstance(data, dict):
        return "expected one JSON object a line"
    custom_id, body = data.get("custom_id"), data.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 512:
        return "expected a custom_id of 1 to 512 characters"
    if custom_id in seen:
        return "another line has the same custom_id"
    if data.get("method") != "POST" or data.get("url") != endpoint:
        return f"expected the method POST and the url {endpoint}, the batch's endpoint"
    if not isinstance(body, dict):
        return "expected a body that is a JSON object"
    seen.add(custom_id)
    return custom_id, body
