"""The messages of a chat, read from a body into what a chat template takes."""

from __future__ import annotations

import json
from typing import Any

from negawatt.serve.fields import Fields, wrong

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_CALLS = 128


def messages_of(fields: Fields) -> list[dict[str, Any]]:
    """Each with ``role`` and ``content``; calls of tools with their arguments as objects, as templates want.

    Raises:
        Refused: one is wrong, by its place.
    """
    messages = fields.take("messages")
    if messages is None:
        raise wrong("messages", "you must provide messages", "missing_required_parameter")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "messages must be a list of at least one message")
    return [_message(f"messages[{number}]", entry) for number, entry in enumerate(messages)]


def speaks_of_tools(messages: list[dict[str, Any]]) -> bool:
    """Whether any of them calls a tool or tells what one said."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _message(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise wrong(where, f"{where} must be an object with role and content")
    role = entry.get("role")
    if role not in ROLES:
        raise wrong(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}")
    read: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = entry.get("tool_calls")
    if role == "assistant" and calls is not None:
        if not isinstance(calls, list) or not 0 < len(calls) <= MOST_CALLS:
            raise wrong(
                f"{where}.tool_calls", f"{where}.tool_calls must be a list of 1 to {MOST_CALLS} calls"
            )
        read["tool_calls"] = [_call(f"{where}.tool_calls[{n}]", call) for n, call in enumerate(calls)]
    if role == "tool":
        if not isinstance(entry.get("tool_call_id"), str):
            raise wrong(f"{where}.tool_call_id", f"{where}.tool_call_id must say which call this answers")
        read["tool_call_id"] = entry["tool_call_id"]
        if isinstance(entry.get("name"), str):
            read["name"] = entry["name"]
    may_be_empty = "tool_calls" in read and entry.get("content") is None
    read["content"] = "" if may_be_empty else _content(where, entry.get("content"))
    return read


def _content(where: str, content: Any) -> str:
    if isinstance(content, list):
        parts = []
        for part in content:
            if not (
                isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            ):
                raise wrong(f"{where}.content", f"{where}.content may hold parts of the type text only")
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise wrong(f"{where}.content", f"{where}.content must be a string or a list of text parts")
    return content


def _call(where: str, entry: Any) -> dict[str, Any]:
    function = entry.get("function") if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(where, f"{where} must be a call of a function with a name and arguments")
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError) as exc:
        raise wrong(f"{where}.function.arguments", f"{where}.function.arguments must be JSON") from exc
    return {
        "id": str(entry.get("id", "")),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
