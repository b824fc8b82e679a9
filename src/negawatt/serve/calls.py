"""`Calls`: how one model writes calls of tools, forced into that form and read out of it again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from negawatt.engine.grammar import json_lark, lark_grammar
from negawatt.errors import MissingDependency, UsageError
from negawatt.serve.fields import wrong
from negawatt.serve.tools import Tools


@dataclass(frozen=True, slots=True)
class CallForm:
    """Attributes:
    opening, closing: around a call; empty where the JSON stands alone.
    arguments: name of the field that holds them.
    """

    opening: str = ""
    closing: str = ""
    arguments: str = "arguments"


def form_of(template: str) -> CallForm:
    """The form that a chat template shows to the model.

    Known are that of Hermes and Qwen (``<tool_call>`` around an object), that of Llama 3 (an object with
    ``parameters``), and the plain object or list of others.
    """
    if "<tool_call>" in template:
        return CallForm("<tool_call>\n", "\n</tool_call>")
    if '"parameters"' in template and "<|python_tag|>" in template:
        return CallForm(arguments="parameters")
    return CallForm()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function.

    Attributes:
        arguments: JSON text; cut off where the answer was.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def to_json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Calls:
    """Attributes:
    tools: what may, or has to, be called.
    form: of the model.
    """

    tools: Tools
    form: CallForm

    def grammar(self) -> str | None:
        """The grammar of a forced call; None where the model is free.

        Raises:
            Refused: nothing can be held to the schema of a tool's arguments.
        """
        if not self.tools.forced:
            return None
        rules = [f"start: {' | '.join(f'call{n}' for n in range(len(self.tools.forced)))}"]
        for number, tool in enumerate(self.tools.forced):
            before, after = json.dumps(self.prefix(tool.name)), json.dumps(self.suffix)
            rules.append(f"call{number}: {before} args{number} {after}")
            rules.append(f"args{number}: {json_lark(tool.parameters)}")
        try:
            return lark_grammar("\n".join(rules))
        except UsageError as exc:
            why = f"no arguments can be held to the parameters of these tools: {exc}"
            raise wrong("tools", why, "invalid_json_schema") from exc
        except MissingDependency as exc:
            raise wrong("tool_choice", str(exc), "unsupported_parameter") from exc

    def prefix(self, name: str) -> str:
        """What a forced call of a function begins with, up to its arguments."""
        return f'{self.form.opening}{{"name": {json.dumps(name)}, "{self.form.arguments}": '

    @property
    def suffix(self) -> str:
        """What a forced call ends with, after its arguments."""
        return "}" + self.form.closing

    def read(self, text: str) -> tuple[str | None, list[Call]]:
        """What an answer says beside its calls, None if nothing, and the calls."""
        if self.tools.forced:
            name = self.forced_name(text)
            if name is None:
                return text or None, []
            return None, [Call(name, text.removeprefix(self.prefix(name)).removesuffix(self.suffix))]
        content, calls = self._free(text)
        kept = calls if self.tools.parallel else calls[:1]
        return (content, kept) if kept else (text, [])

    def forced_name(self, text: str) -> str | None:
        """The function that a forced answer has begun to call, once that is certain."""
        names = (tool.name for tool in self.tools.forced)
        return next((name for name in names if text.startswith(self.prefix(name))), None)

    def may_begin(self, text: str) -> int:
        """How much of a free answer, from its end, is or may become a call; 0: nothing."""
        mark = self.form.opening.strip()
        if not mark:
            return len(text) if text.lstrip()[:1] in ("", "{", "[") else 0
        if (place := text.find(mark)) >= 0:
            return len(text) - place
        return max((n for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)

    def _free(self, text: str) -> tuple[str | None, list[Call]]:
        mark, end = self.form.opening.strip(), self.form.closing.strip()
        if not mark:
            return None, self._parsed(text)
        before, *parts = text.split(mark)
        found: list[Call] = []
        for part in parts:
            calls = self._parsed(part.partition(end)[0])
            if not calls:  # one that cannot be read is no call: all of it is what the model said
                return text, []
            found += calls
        return before.strip() or None, found

    def _parsed(self, text: str) -> list[Call]:
        """The calls in a JSON object or list; none where it is neither or names what is not offered."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return []
        entries = told if isinstance(told, list) else [told]
        names = {tool.name for tool in self.tools.offered}
        calls = []
        for entry in entries:
            arguments = entry.get(self.form.arguments, {}) if isinstance(entry, dict) else None
            if not isinstance(arguments, dict) or entry.get("name") not in names:
                return []
            calls.append(Call(entry["name"], json.dumps(arguments, ensure_ascii=False)))
        return calls


class CallStream:
    """One choice's text, handed out as deltas of content and of calls.

    A forced call is handed out while it is written; a free one when it is whole.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._held = ""
        self._forced: Call | None = None
        self._spoke = self.called = False

    def push(self, text: str) -> Iterator[dict[str, Any]]:
        """The deltas that are certain now."""
        self._held += text
        if self._calls.tools.forced:
            yield from self._forced_deltas(len(self._calls.suffix))
            return
        alone = not self._calls.form.opening  # such a call is the whole answer
        certain = len(self._held) - (0 if alone and self._spoke else self._calls.may_begin(self._held))
        yield from self._content(self._held[:certain])
        self._held = self._held[certain:]

    def finish(self) -> Iterator[dict[str, Any]]:
        """What is left."""
        if self._calls.tools.forced:
            self._held = self._held.removesuffix(self._calls.suffix)
            yield from self._forced_deltas(0)
            if self._forced is None:
                yield from self._content(self._held)
            return
        content, calls = self._calls.read(self._held)
        yield from self._content(content or "")
        self.called = bool(calls)
        for number, call in enumerate(calls):
            yield {"tool_calls": [{"index": number, **call.to_json()}]}

    def _content(self, text: str) -> Iterator[dict[str, Any]]:
        if text:
            self._spoke = True
            yield {"content": text}

    def _forced_deltas(self, kept: int) -> Iterator[dict[str, Any]]:
        if self._forced is None:
            name = self._calls.forced_name(self._held)
            if name is None:
                return
            self._held = self._held.removeprefix(self._calls.prefix(name))
            self._forced, self.called = Call(name, ""), True
            yield {"tool_calls": [{"index": 0, **self._forced.to_json()}]}
        certain = self._held[: max(0, len(self._held) - kept)]
        if certain:
            self._held = self._held[len(certain) :]
            yield {"tool_calls": [{"index": 0, "function": {"arguments": certain}}]}


def calls_finish(reason: str | None, calls: Sequence[Call] | bool) -> str | None:
    """The ``finish_reason`` of a choice that called something, unless it ran out of tokens."""
    return "tool_calls" if calls and reason == "stop" else reason
