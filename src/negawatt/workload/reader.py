"""Reading items files: JSON Lines, one item a line, bounded and checked.

Every fault becomes one `WorkloadError` that names the file, the line and the item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from negawatt.errors import WorkloadError
from negawatt.workload.corpus import Corpus, Document
from negawatt.workload.items import (
    KINDS,
    ROLES,
    ChooseItem,
    ClassifyItem,
    GenerateItem,
    Message,
    PerplexityItem,
    Prompt,
    QualityItem,
    RetrieveItem,
    TrafficItem,
)

MAX_LINE_BYTES = 1_000_000
"""Longest line accepted; a longer one is refused after reading this much of it."""
MAX_ARRIVAL_S = 1e9

_GENERATE_FIELDS = {"id", "kind", "prompt", "references", "max_new_tokens", "arrival_s"}
_FIELDS = {
    "generate": _GENERATE_FIELDS,  # the same line may serve as traffic and as a question
    "choose": {"id", "kind", "context", "choices", "answer"},
    "classify": {"id", "kind", "prompt", "labels", "answer"},
    "perplexity": {"id", "kind", "text"},
    "retrieve": {"id", "kind", "query", "relevant"},
}
Item = TypeVar("Item", TrafficItem, QualityItem, Document)


class Line:
    """One parsed line, with what is needed to complain about it."""

    def __init__(self, file: Path, number: int, record: Mapping[str, Any]) -> None:
        self.file, self.number, self.record = file, number, record
        self.where = f"{file}, line {number}"
        if (found := record.get("id")) is not None:
            self.where += f", item {str(found)[:60]!r}"

    def fail(self, message: str) -> NoReturn:
        raise WorkloadError(f"{self.where}: {message}")

    def get(self, field: str) -> Any:
        if field not in self.record:
            self.fail(f"the field {field!r} is missing")
        return self.record[field]

    def text(self, field: str) -> str:
        value = self.get(field)
        if not isinstance(value, str) or not value:
            self.fail(f"{field!r} must be a text that is not empty, not {_shown(value)}")
        return self._encodable(value, field)

    def texts(self, field: str, *, least: int) -> tuple[str, ...]:
        values = self.get(field)
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            self.fail(f"{field!r} must be a list of texts that are not empty, not {_shown(values)}")
        if len(values) < least:
            self.fail(
                f"{field!r} needs at least {least} {'text' if least == 1 else 'texts'}, not {len(values)}"
            )
        if least > 1 and len(set(values)) < len(values):
            self.fail(f"{field!r} holds the same text twice")
        return tuple(self._encodable(v, field) for v in values)

    def count(self, field: str) -> int:
        value = self.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(f"{field!r} must be a whole number of at least 1, not {_shown(value)}")
        return value

    def prompt(self, field: str) -> Prompt:
        value = self.get(field)
        if not isinstance(value, list):
            return self.text(field)
        messages = []
        for turn in value:
            fine = isinstance(turn, dict) and set(turn) == {"role", "content"} and turn["role"] in ROLES
            if not fine or not isinstance(turn["content"], str) or not turn["content"]:
                self.fail(
                    f"{field!r} must be a text, or a list of messages that each hold a role "
                    f"({', '.join(ROLES)}) and a content, not {_shown(turn)}"
                )
            messages.append(Message(turn["role"], self._encodable(turn["content"], field)))
        if not messages or messages[-1].role != "user":
            self.fail(f"the last message of {field!r} must be the user's")
        return tuple(messages)

    def _encodable(self, value: str, field: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{field!r} holds half of a surrogate pair, which is no text")
        return value


def read_traffic(file: Path) -> tuple[tuple[TrafficItem, ...], str]:
    """Read the traffic of an items file; also give the sha256 of its bytes.

    Raises:
        WorkloadError: the file breaks the format; the message names file, line and item.
    """
    return _read(file, _traffic_item)


def read_quality(file: Path, corpus: Corpus | None = None) -> tuple[tuple[QualityItem, ...], str]:
    """Read the quality set of an items file; also give the sha256 of its bytes.

    Args:
        corpus: what queries search; without one there may be none.

    Raises:
        WorkloadError: the file breaks the format; the message names file, line and item.
    """
    return _read(file, lambda line: _quality_item(line, corpus))


def read_documents(file: Path) -> tuple[tuple[Document, ...], str]:
    """Read the documents of a corpus; also give the sha256 of the file's bytes.

    Raises:
        WorkloadError: the file breaks the format; the message names file, line and document.
    """
    return _read(file, _document)


def bounded_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, never holding more than `MAX_LINE_BYTES` of one.

    Raises:
        WorkloadError: the file cannot be read, or a line is too long.
    """
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise WorkloadError(
                        f"{file}, line {number}: longer than {MAX_LINE_BYTES:,} bytes; "
                        "split it into several items"
                    )
                yield number, line
    except OSError as exc:
        raise WorkloadError(f"{file} cannot be read: {exc.strerror or exc}") from exc


def _read(file: Path, parse: Callable[[Line], Item]) -> tuple[tuple[Item, ...], str]:
    digest = hashlib.sha256()
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, raw in bounded_lines(file):
        digest.update(raw)
        if not raw.strip():
            continue
        line = _parse_line(file, number, raw)
        item = parse(line)
        if item.id in seen:
            line.fail(f"the id was used on line {seen[item.id]} already; every item needs its own")
        seen[item.id] = number
        items.append(item)
    if not items:
        raise WorkloadError(f"{file} holds no items; a workload needs at least one")
    return tuple(items), digest.hexdigest()


def _parse_line(file: Path, number: int, raw: bytes) -> Line:
    where = f"{file}, line {number}"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise WorkloadError(f"{where}: not valid UTF-8 at byte {exc.start}; save the file as UTF-8") from exc
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise WorkloadError(f"{where}: not a JSON object: {reason}") from exc
    if not isinstance(record, dict):
        raise WorkloadError(f"{where}: each line must be a JSON object, not {_shown(record)}")
    return Line(file, number, record)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number JSON knows")


def _traffic_item(line: Line) -> TrafficItem:
    if (kind := line.record.get("kind", "generate")) != "generate":
        line.fail(f"traffic is of the kind 'generate', not {_shown(kind)}")
    _refuse_unknown(line, _GENERATE_FIELDS)
    return TrafficItem(line.text("id"), line.prompt("prompt"), line.count("max_new_tokens"), _arrival_s(line))


def _arrival_s(line: Line) -> float | None:
    arrival_s = line.record.get("arrival_s")
    if arrival_s is None:
        return None
    is_number = isinstance(arrival_s, int | float) and not isinstance(arrival_s, bool)
    if not is_number or not 0 <= arrival_s <= MAX_ARRIVAL_S:
        line.fail(f"'arrival_s' must be seconds from 0 to {MAX_ARRIVAL_S:,.0f}, not {_shown(arrival_s)}")
    return float(arrival_s)


def _document(line: Line) -> Document:
    _refuse_unknown(line, {"id", "text"})
    return Document(line.text("id"), line.text("text"))


def _quality_item(line: Line, corpus: Corpus | None) -> QualityItem:
    kind = line.get("kind")
    if kind not in KINDS:
        line.fail(f"'kind' must be one of {', '.join(KINDS)}, not {_shown(kind)}")
    _refuse_unknown(line, _FIELDS[kind])
    match kind:
        case "generate":
            references = line.texts("references", least=1)
            return GenerateItem(
                line.text("id"), line.prompt("prompt"), references, line.count("max_new_tokens")
            )
        case "choose":
            return _choose_item(line)
        case "retrieve":
            return _retrieve_item(line, corpus)
        case "classify":
            labels = line.texts("labels", least=2)
            if (answer := line.text("answer")) not in labels:
                line.fail(f"'answer' must be one of the labels {', '.join(labels)}, not {_shown(answer)}")
            return ClassifyItem(line.text("id"), line.prompt("prompt"), labels, answer)
        case _:
            return PerplexityItem(line.text("id"), line.text("text"))


def _choose_item(line: Line) -> ChooseItem:
    choices = line.texts("choices", least=2)
    answer = line.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        line.fail(
            f"'answer' must be the index of the right choice, 0 to {len(choices) - 1}, not {_shown(answer)}"
        )
    return ChooseItem(line.text("id"), line.prompt("context"), choices, answer)


def _retrieve_item(line: Line, corpus: Corpus | None) -> RetrieveItem:
    if corpus is None:
        line.fail("it searches a corpus, and the header names none; add a [corpus] section")
    relevant = line.texts("relevant", least=1) if "relevant" in line.record else ()
    if absent := [each for each in relevant if each not in corpus.places]:
        line.fail(f"the corpus holds no document {_shown(absent[0])}, which 'relevant' names")
    if len(set(relevant)) < len(relevant):
        line.fail("'relevant' names the same document twice")
    return RetrieveItem(line.text("id"), line.text("query"), relevant, corpus)


def _refuse_unknown(line: Line, known: set[str]) -> None:
    if unknown := sorted(set(line.record) - known):
        line.fail(f"unknown field {unknown[0][:60]!r}; known: {', '.join(sorted(known))}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
