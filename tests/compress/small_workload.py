"""A workload of a few prompts, written into a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HEADER = """schema = 1
name = "few"
description = "A few prompts."
source = "this test"
licence = "Apache-2.0"

[traffic]
items = "traffic.jsonl"
"""


def write_workload(folder: Path, prompts: Sequence[tuple[Any, int]]) -> None:
    """Traffic of prompts (texts or chats), each with the number of tokens of its answer."""
    rows = [{"id": str(i), "prompt": p, "max_new_tokens": n} for i, (p, n) in enumerate(prompts)]
    (folder / "traffic.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (folder / "workload.toml").write_text(_HEADER, "utf-8")
