"""The real model with a vocabulary cut to a small workload answers as it did, and runs in llama.cpp.

As it did in fp32, in which the answers were proved; other arithmetic, even f16, may prefer, where two tokens
are nearly equal, one that was not kept.
"""

from __future__ import annotations

from pathlib import Path

from small_workload import write_workload

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings
from negawatt.profiling.window import requests_of
from negawatt.workload import Workload

QUESTIONS = ("What makes bread dough rise?", "Name three rivers in Europe, with the sea each one reaches.")


def test_a_quarter_of_the_rows_answers_the_same(model: Artifact, tmp_path: Path) -> None:
    write_workload(tmp_path, [([{"role": "user", "content": question}], 16) for question in QUESTIONS])
    technique = parse("vocabulary:common=8000")
    recipe = Recipe("smollm2-135m-instruct", (technique,), str(tmp_path), heldout=1, length=24, threads=1)
    compress(recipe, tmp_path / "out")
    out = Artifact.open(tmp_path / "out")
    assert out.lineage[-1]["outcome"]["answer_tokens"] == 32
    assert out.shape.vocab < 0.25 * model.shape.vocab
    before, after = (answers(each, tmp_path, Settings(weight_format="fp32")) for each in (model, out))
    assert before == after
    assert all(before)
    assert all(answers(out, tmp_path, Settings(engine="llamacpp", weight_format="f16")))


def answers(model: Artifact, workload: Path, settings: Settings) -> list[str]:
    requests = requests_of(model.tokenizer, Workload.open(workload).traffic, 128)
    with Engine(model, settings.replace(threads=1, max_context=128)) as engine:
        written = [engine.generate([r]).completions[0].tokens for r in requests]
    return [model.tokenizer.decode(tokens, skip_special=False) for tokens in written]
