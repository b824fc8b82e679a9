"""Answers held to a grammar: they always fit it, on engines of both kinds, alone and beside free ones."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import small_backend

from negawatt.artifact import Artifact
from negawatt.engine.backend import Backend
from negawatt.engine.batching import Batching, Job, Report
from negawatt.engine.cells import Cells
from negawatt.engine.grammar import LONGEST, Grammars, json_grammar, lark_grammar
from negawatt.errors import EngineError, UsageError
from negawatt.testing.small_models import small_model

NUMBERS = itertools.count()
PROMPT = [5, 9, 200, 31, 7, 77, 8]
BIRD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["gull", "puffin", "tern"]},
        "seen": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 6},
        "where": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["kind", "seen", "note", "where"],
    "additionalProperties": False,
}


def fits(text: str) -> bool:
    bird = json.loads(text)
    return (
        list(bird) == ["kind", "seen", "note", "where"]
        and bird["kind"] in ("gull", "puffin", "tern")
        and type(bird["seen"]) is int and 0 <= bird["seen"] <= 99
        and isinstance(bird["note"], str) and len(bird["note"]) <= 6
        and len(bird["where"]) in (1, 2) and all(type(place) is bool for place in bird["where"])
    )  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("small") / "llama"))


loaded = functools.partial(small_backend.loaded, batch=3, slots=6)


@pytest.fixture(scope="module", params=["llamacpp", "transformers"])
def backend(
    request: pytest.FixtureRequest,
    small: Artifact,
    llamacpp_runtime: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Backend:
    return loaded(small, tmp_path_factory.mktemp("cache"), request.param)


def batching(backend: Backend, artifact: Artifact) -> Batching:
    slots = 6 if backend.shares else 3
    for slot in range(slots):
        backend.release(slot)
    cells = Cells(backend, slots, 512 if backend.shares else 384)
    return Batching(backend, cells, 3, 64, lambda: Grammars(artifact.tokenizer, backend.vocab_size))


def job(artifact: Artifact, tokens: int = 100, **changes: Any) -> Job:
    return Job(next(NUMBERS), PROMPT, tokens, artifact.tokenizer.eos_ids, **changes)


def run(loop: Batching, artifact: Artifact, *jobs: Job) -> tuple[list[str], dict[int, str], list[Report]]:
    """Their texts, how each ended, and the steps."""
    for each in jobs:
        loop.submit(each)
    reports = []
    while loop.busy:
        reports.append(loop.step())
    tokens = [[p.token for r in reports for number, p in r.picked if number == each.id] for each in jobs]
    ended = {number: how for r in reports for number, how in (*r.finished, *r.failed)}
    return [artifact.tokenizer.decode(ids) for ids in tokens], ended, reports


def test_greedy_and_drawn_answers_fit(backend: Backend, small: Artifact) -> None:
    grammar = json_grammar(BIRD)
    jobs = [job(small, grammar=grammar)]
    jobs += [job(small, grammar=grammar, temperature=1.7, top_p=0.9, seed=seed) for seed in range(5)]
    free = job(small, tokens=9, temperature=1.0, seed=3)
    texts, ended, _ = run(batching(backend, small), small, *jobs, free)
    assert all(fits(text) for text in texts[:-1]) and len(set(texts)) > 3
    assert all(ended[each.id] == "stop" for each in jobs)
    assert run(batching(backend, small), small, free)[0] == texts[-1:]  # as if it had been alone


def test_an_answer_that_ran_out_of_tokens_says_so(backend: Backend, small: Artifact) -> None:
    short = job(small, tokens=4, grammar=json_grammar(BIRD))
    texts, ended, _ = run(batching(backend, small), small, short)
    assert ended[short.id] == "length" and texts[0].startswith('{"')


def test_what_it_costs_is_told_beside_the_step(backend: Backend, small: Artifact) -> None:
    held, free = job(small, grammar=json_grammar(BIRD)), job(small, tokens=30)
    _, _, reports = run(batching(backend, small), small, held, free)
    own = {each.id: sum(p.own_cpu_s for r in reports for p in r.parts if p.job == each.id)
           for each in (held, free)}  # fmt: skip
    assert own[held.id] > 0 and own[free.id] == 0
    assert sum(r.beside_cpu_s for r in reports) > 0  # the table of tokens, made once


def test_what_has_no_choice_is_not_asked_of_the_model(
    small: Artifact, llamacpp_runtime: Path, tmp_path: Path
) -> None:
    backend = loaded(small, tmp_path, "llamacpp")
    held = job(small, grammar=json_grammar(BIRD))
    texts, _, reports = run(batching(backend, small), small, held)
    written = sum(len(r.picked) for r in reports)
    assert fits(texts[0]) and len(reports) < 0.8 * written
    fed = sum(part.fed for r in reports for part in r.parts)
    assert len(PROMPT) + written - 4 < fed < len(PROMPT) + written  # every token once, but for the last
    told = job(small, grammar=json_grammar(BIRD), log_probs=1)
    texts, _, reports = run(batching(backend, small), small, told)
    assert fits(texts[0]) and all(p.log_prob is not None for r in reports for _, p in r.picked)


def test_speculation_changes_no_answer(small: Artifact, llamacpp_runtime: Path, tmp_path: Path) -> None:
    grammar = json_grammar({"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 12, "maxItems": 12})
    plain, ahead = (loaded(small, tmp_path, "llamacpp", how) for how in ("none", "ngram"))
    asked = {"grammar": grammar, "log_probs": 0}  # so that nothing is written unasked
    expected, _, steps = run(batching(plain, small), small, job(small, **asked))
    found, ended, fewer = run(batching(ahead, small), small, job(small, **asked))
    assert found == expected and len(json.loads(found[0])) == 12 and set(ended.values()) == {"stop"}
    assert len(fewer) < len(steps)


def test_a_grammar_that_cannot_be_is_the_end_of_one_answer_only(backend: Backend, small: Artifact) -> None:
    bad, good = job(small, grammar="{}"), job(small, tokens=3)
    texts, ended, reports = run(batching(backend, small), small, bad, good)
    assert ended[good.id] == "length" and ended[bad.id] and texts[0] == ""
    assert [number for r in reports for number, _ in r.failed] == [bad.id]
    loop = Batching(backend, Cells(backend, 3, 384), 3)
    assert "cannot be held" in run(loop, small, job(small, grammar="{}"))[1].popitem()[1]


def test_tool_calls_have_a_frame(small: Artifact) -> None:
    grammar = lark_grammar('start: "<call>" call "</call>"\ncall: %json {"const": 7}')
    constraint = Grammars(small.tokenizer, 416).constraint(grammar)
    written: list[int] = []
    while not constraint.ended:
        import numpy as np

        row = np.zeros(416, np.float32)
        token = int(constraint.masked(row).argmax())
        constraint.accept(token)
        written.append(token)
    assert small.tokenizer.decode(written) == "<call>7</call>"
    with pytest.raises(EngineError):
        constraint.accept(5)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "objec"}, "objec"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "https://example.org/a.json"}, "example.org"),
        ({"type": "string", "pattern": "(("}, "regex"),
        ({"type": "string", "minLength": 3, "maxLength": 1}, "greater"),
        ({"enum": ["x" * LONGEST]}, "longer than"),
    ],
)
def test_schemas_that_cannot_be_held_to_are_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        json_grammar(schema)
