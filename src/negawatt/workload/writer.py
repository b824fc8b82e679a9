"""Writing a workload to disk, as `Workload.open` reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negawatt.home import written_beside
from negawatt.workload.corpus import Document
from negawatt.workload.header import SCHEMA
from negawatt.workload.items import QualityItem, TrafficItem, to_record
from negawatt.workload.workload import Workload


def write_workload(workload: Workload, folder: Path) -> Path:
    """Write a workload into a new folder, whole or not at all; a folder that is there is replaced.

    Raises:
        NegawattError: the disk is full or the place cannot be written.
    """
    texts = {name: getattr(workload, name) for name in ("name", "description", "source", "licence")}
    lines = [f"schema = {SCHEMA}", *(f"{key} = {json.dumps(value)}" for key, value in texts.items())]
    parts: list[tuple[str, Sequence[TrafficItem | QualityItem | Document]]] = [
        ("traffic", workload.traffic), ("quality", workload.quality),
    ]  # fmt: skip
    if workload.corpus is not None:
        parts.insert(0, ("corpus", workload.corpus.documents))
    with written_beside(folder) as temporary:
        temporary.mkdir()
        for part, items in parts:
            if not items:
                continue
            content = "".join(json.dumps(_record(item), ensure_ascii=False) + "\n" for item in items).encode()
            (temporary / f"{part}.jsonl").write_bytes(content)
            lines += [
                "",
                f"[{part}]",
                f'items = "{part}.jsonl"',
                f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
            ]
            if part == "corpus" and workload.corpus is not None:
                lines.append(f"queries_per_document = {workload.corpus.queries_per_document!r}")
        if workload.metrics:
            chosen = ", ".join(f"{kind} = {json.dumps(name)}" for kind, name in workload.metrics.items())
            lines.append(f"metrics = {{ {chosen} }}")
        (temporary / "workload.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _record(item: TrafficItem | QualityItem | Document) -> dict[str, Any]:
    return {"id": item.id, "text": item.text} if isinstance(item, Document) else to_record(item)
