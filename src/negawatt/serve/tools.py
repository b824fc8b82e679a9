"""`Tools`: the functions that a client lets the model call, and which it must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.serve.fields import Fields, wrong

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    """Attributes:
    name: of the function.
    description: for the model.
    parameters: JSON schema of its arguments.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Tools:
    """Attributes:
    offered: at least one.
    choice: ``auto``: the model may call some; ``required``: it has to call one; ``named``: the only one of
        `forced`.
    forced: those of which one has to be called; empty with ``auto``.
    parallel: whether it may call several at once.
    """

    offered: tuple[Tool, ...]
    choice: str
    forced: tuple[Tool, ...]
    parallel: bool


def tools_of(fields: Fields) -> Tools | None:
    """Read ``tools``, ``tool_choice`` and ``parallel_tool_calls``; None where nothing can be called.

    Raises:
        Refused: something is wrong, by name.
    """
    value = fields.take("tools", [])
    choice = fields.take("tool_choice", "auto" if value else "none")
    parallel = fields.take("parallel_tool_calls", True)
    if not isinstance(parallel, bool):
        raise wrong("parallel_tool_calls", "parallel_tool_calls must be true or false")
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise wrong("tools", f"tools must be a list of at most {MOST_TOOLS} tools")
    offered = tuple(_tool(f"tools[{number}]", entry) for number, entry in enumerate(value))
    names = [tool.name for tool in offered]
    if len(set(names)) < len(names):
        raise wrong("tools", "two tools have the same name")
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name") if choice.get("type") == "function" else None
        if name not in names:
            raise wrong("tool_choice", "tool_choice must name one of the tools")
        forced = tuple(tool for tool in offered if tool.name == name)
        return Tools(offered, "named", forced, parallel)
    if choice not in ("none", "auto", "required"):
        raise wrong("tool_choice", "tool_choice must be none, auto, required or the name of a function")
    if not offered:
        if choice == "required":
            raise wrong("tool_choice", "tool_choice is only allowed when tools are given")
        return None
    if choice == "none":
        return None
    return Tools(offered, choice, offered if choice == "required" else (), parallel)


def _tool(where: str, entry: Any) -> Tool:
    if not isinstance(entry, dict) or entry.get("type") != "function":
        raise wrong("tools", f"{where} must be of the type function")
    function = entry.get("function")
    if not isinstance(function, dict):
        raise wrong("tools", f"{where}.function must be an object")
    fields = Fields(function)
    name, description = fields.text("name"), fields.text("description", "")
    if not _NAME.fullmatch(name):
        raise wrong("tools", f"{where}: a name has 1 to 64 letters, digits, dashes and underscores")
    parameters = fields.take("parameters", _NO_ARGUMENTS)
    if not isinstance(parameters, dict):
        raise wrong("tools", f"{where}.function.parameters must be a JSON schema, an object")
    fields.flag("strict")
    fields.refuse_rest()
    return Tool(name, description, parameters)
