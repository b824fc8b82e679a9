"""The report as JSON: the run's own records, with the verdict in words beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from negawatt.report import columns, words
from negawatt.report.answer import answer
from negawatt.report.facts import Facts
from negawatt.report.points import frontier, points

SCHEMA = 1


def document(facts: Facts) -> str:
    """Render a run as one JSON document; figures stay as the run recorded them."""
    found = answer(facts)
    content = {
        "schema": SCHEMA,
        "kind": facts.kind,
        "run": str(facts.path),
        "finished": facts.finished,
        "answer": {
            "status": found.status,
            "headline": found.headline,
            "saving": found.saving or None,
            "text": found.text or None,
            "figures": [{"name": n, "figure": f, "remark": r or None} for n, f, r in found.figures],
        },
        "manifest": facts.manifest,
        "result": facts.result or None,
        "trials": [{k: v for k, v in t.items() if k != "record"} for t in facts.raw_trials],
        "frontier": [p.settings for p in frontier(facts, points(facts))],
        "search": {
            "trials": facts.search.trials,
            "failed": facts.search.failed,
            "pruned": facts.search.pruned,
            "energy": facts.search.energy.to_json(),
            "cpu_s": facts.search.cpu_s,
            "duration_s": facts.search.duration_s,
            "payback_tokens": facts.search.payback_tokens,
        },
        "method": [{"name": name, "value": value} for name, value in columns.method_rows(facts)],
        "reference": [{"time_s": t, "cpu_s": c} for t, c in facts.reference],
        "warnings": columns.all_warnings(facts),
        "command": columns.command(facts) or words.NOT_MEASURED,
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(data: Any) -> Any:
    """JSON has no NaN and no infinity; a record that holds one gets null."""
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
