"""The real model with a vocabulary cut to a small workload answers in llama.cpp as it did.

In f16, which follows the fp32 that answers were proved in; coarser weights may prefer, where two tokens are
nearly equal, one that was not kept.
"""

from __future__ import annotations

import json
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings
from negawatt.profiling.window import requests_of
from negawatt.workload import Workload

HEADER = """schema = 1
name = "few"
description = "A few prompts."
source = "this test"
licence = "Apache-2.0"

[traffic]
items = "traffic.jsonl"
"""
QUESTIONS = ("What makes bread dough rise?", "Name three rivers in Europe, with the sea each one reaches.")


def test_llama_cpp_answers_the_same_from_a_quarter_of_the_rows(model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "workload.toml").write_text(HEADER, "utf-8")
    rows = [{"id": q, "prompt": [{"role": "user", "content": q}], "max_new_tokens": 16} for q in QUESTIONS]
    (tmp_path / "traffic.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    technique = parse("vocabulary:common=8000")
    recipe = Recipe("smollm2-135m-instruct", (technique,), str(tmp_path), heldout=1, length=24)
    compress(recipe, tmp_path / "out")
    out = Artifact.open(tmp_path / "out")
    assert out.lineage[-1]["outcome"]["answer_tokens"] == 32
    assert out.shape.vocab < 0.25 * model.shape.vocab
    texts = []
    for each in (model, out):
        requests = requests_of(each.tokenizer, Workload.open(tmp_path).traffic, 128)
        settings = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=128)
        with Engine(each, settings) as engine:
            written = [engine.generate([r]).completions[0].tokens for r in requests]
        texts.append([each.tokenizer.decode(tokens, skip_special=False) for tokens in written])
    assert texts[0] == texts[1]
    assert all(texts[0])
