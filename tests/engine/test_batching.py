"""Continuous batching: whoever else is in a step, a sequence gets the tokens that it gets alone."""

from __future__ import annotations

import functools
import itertools
import time
from pathlib import Path

import pytest
import small_backend

from negawatt.artifact import Artifact
from negawatt.engine.backend import Backend
from negawatt.engine.batching import Batching, Job, Report
from negawatt.engine.cells import Cells
from negawatt.engine.decode import Decoder, Request
from negawatt.testing.small_models import small_model

PROMPTS = [[5, 9, 200, 31, 7, 77, 8], [40] * 30 + [3], [300, 2], list(range(10, 60)), [17, 18, 19]]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("small") / "llama"))


loaded = functools.partial(small_backend.loaded, batch=4, slots=10)


@pytest.fixture(scope="module")
def llamacpp(
    checkpoint: Artifact, llamacpp_runtime: Path, tmp_path_factory: pytest.TempPathFactory
) -> Backend:
    return loaded(checkpoint, tmp_path_factory.mktemp("cache"), "llamacpp")


def batching(backend: Backend, *, step_tokens: int = 16, keep: bool = True, batch: int = 4) -> Batching:
    if backend.shares:
        for slot in range(10):
            backend.release(slot)
        return Batching(backend, Cells(backend, 10, 512, keep=keep), batch, step_tokens)
    return Batching(backend, Cells(backend, 4, 512, keep=keep), 4, step_tokens)


def run(loop: Batching) -> tuple[dict[int, list[int]], list[Report]]:
    written: dict[int, list[int]] = {}
    reports = []
    while loop.busy:
        report = loop.step()
        reports.append(report)
        for job, picked in report.picked:
            written.setdefault(job, []).append(picked.token)
    return written, reports


@pytest.fixture(scope="module")
def alone(llamacpp: Backend) -> list[list[int]]:
    """What each prompt gets from the plain loop, one after the other."""
    for slot in range(10):
        llamacpp.release(slot)
    return [Decoder(llamacpp).generate([Request(p, 12)])[0].tokens for p in PROMPTS]


@pytest.mark.parametrize("step_tokens", [7, 16, 256])
@pytest.mark.parametrize("keep", [False, True])
def test_joining_and_leaving_changes_nothing(
    llamacpp: Backend, alone: list[list[int]], step_tokens: int, keep: bool
) -> None:
    loop = batching(llamacpp, step_tokens=step_tokens, keep=keep)
    written: dict[int, list[int]] = {}
    arrivals = {0: [0, 1], 3: [2], 4: [3, 4], 9: [0]}  # step -> prompts that come then
    numbers: dict[int, int] = {}
    step = 0
    while loop.busy or step <= max(arrivals):
        for index in arrivals.get(step, []):
            job = next(NUMBERS)
            numbers[job] = index
            loop.submit(Job(job, PROMPTS[index], 12))
        for found, picked in loop.step().picked if loop.busy else ():
            written.setdefault(found, []).append(picked.token)
        step += 1
    assert {job: alone[index] for job, index in numbers.items()} == written


def test_a_step_is_bounded_and_writes_while_it_reads(llamacpp: Backend) -> None:
    loop = batching(llamacpp, step_tokens=8)
    loop.submit(Job(1, PROMPTS[2], 20))
    loop.step()
    loop.submit(Job(2, PROMPTS[3], 4))
    _, reports = run(loop)
    assert max(sum(part.fed for part in report.parts) for report in reports) <= 8
    mixed = [r for r in reports if {p.phase for p in r.parts} == {"prefill", "decode"}]
    assert len(mixed) >= 6  # 50 tokens in pieces of 7, a token of the other beside each
    read = [p for r in reports for p in r.parts if p.job == 2 and p.phase == "prefill"]
    assert sum(p.fed for p in read) == 50
    assert [p.context for p in read] == list(itertools.accumulate((p.fed for p in read), initial=0))[:-1]


def test_what_was_read_before_is_not_read_again(llamacpp: Backend, alone: list[list[int]]) -> None:
    loop = batching(llamacpp)
    loop.submit(Job(1, PROMPTS[3], 12))
    first, _ = run(loop)
    loop.submit(Job(2, PROMPTS[3], 12))
    again, reports = run(loop)
    assert first[1] == again[2] == alone[3]
    assert dict(reports[0].started) == {2: 49}
    assert sum(p.fed for r in reports for p in r.parts if p.phase == "prefill") == 1
    longer = [*PROMPTS[3], *again[2], 8, 9]  # the next turn of a conversation
    loop.submit(Job(3, longer, 2))
    _, reports = run(loop)
    assert dict(reports[0].started) == {3: 61}


def test_several_answers_share_one_reading(llamacpp: Backend) -> None:
    loop = batching(llamacpp, keep=True)
    for number in range(3):
        loop.submit(Job(number, PROMPTS[3], 6, temperature=1.0, seed=number, after=0))
    written, reports = run(loop)
    assert sum(p.fed for r in reports for p in r.parts if p.phase == "prefill") == 50 + 2
    assert len({tuple(tokens) for tokens in written.values()}) > 1
    assert all(len(tokens) == 6 for tokens in written.values())


def test_a_cancelled_job_is_out_of_the_next_step_and_its_room_is_free(llamacpp: Backend) -> None:
    loop = batching(llamacpp, keep=False, step_tokens=256)
    for number in range(6):
        loop.submit(Job(number, PROMPTS[number % 5], 40))
    loop.step()
    loop.cancel(0)
    loop.cancel(5)  # still waiting
    loop.cancel(99)
    report = loop.step()
    assert {part.job for part in report.parts} == {1, 2, 3, 4}
    assert dict(report.started).keys() == {4}
    for number in (1, 2, 3, 4):
        loop.cancel(number)
    assert not loop.busy and loop.cells.used == 0 and loop.cells.live == 0


def test_a_prompt_waits_for_room_and_is_not_overtaken(llamacpp: Backend) -> None:
    for slot in range(10):
        llamacpp.release(slot)
    loop = Batching(llamacpp, Cells(llamacpp, 10, 100), 4, 64)
    loop.submit(Job(1, PROMPTS[3], 20))
    loop.submit(Job(2, PROMPTS[3][::-1], 20))
    loop.submit(Job(3, PROMPTS[2], 2))
    order = []
    while loop.busy:
        order += [job for job, _ in loop.step().started]
    assert order == [1, 2, 3]


def test_an_end_token_and_probabilities(llamacpp: Backend, alone: list[list[int]]) -> None:
    loop = batching(llamacpp)
    loop.submit(Job(1, PROMPTS[0], 12, stop_ids=frozenset({alone[0][3]}), log_probs=2))
    reports = []
    while loop.busy:
        reports.append(loop.step())
    picked = [found for r in reports for _, found in r.picked]
    assert [found.token for found in picked] == alone[0][:3]
    assert reports[-1].finished == ((1, "stop"),)
    for found in picked:
        assert found.log_prob is not None and found.top[0] == (found.token, found.log_prob)


def test_every_cpu_second_is_in_one_report(llamacpp: Backend) -> None:
    """What they tell lies between what the process spent inside and what it spent around them."""
    loop = batching(llamacpp)
    around_s = time.process_time()
    loop.idle_cpu_s()
    inside_s = time.process_time()
    for number, prompt in enumerate(PROMPTS):
        loop.submit(Job(number, prompt, 10))
    _, reports = run(loop)
    inside_s = time.process_time() - inside_s
    told_s = sum(r.cpu_s for r in reports) + loop.idle_cpu_s()
    around_s = time.process_time() - around_s
    assert inside_s - 1e-9 <= told_s <= around_s + 1e-9


def test_proposals_change_how_many_steps_it_takes_and_nothing_else(
    checkpoint: Artifact, alone: list[list[int]], tmp_path: Path
) -> None:
    backend = loaded(checkpoint, tmp_path, "llamacpp", speculation="ngram")
    loop = batching(backend, step_tokens=64)
    for number, prompt in enumerate(PROMPTS):
        loop.submit(Job(number, prompt, 12))
    written, reports = run(loop)
    assert written == dict(enumerate(alone))
    taken = [len([1 for job, _ in r.picked if job == 1]) for r in reports]
    assert max(taken) > 1  # a prompt that repeats itself is guessed
    loop.submit(Job(9, PROMPTS[1], 12, temperature=1.0, seed=5))
    drawn, _ = run(loop)
    plain = batching(loaded(checkpoint, tmp_path, "llamacpp"), step_tokens=64)
    plain.submit(Job(9, PROMPTS[1], 12, temperature=1.0, seed=5))
    assert drawn == run(plain)[0]  # drawn from the same probabilities, with the same chance
    loop.cells.forget()
    assert loop.cells.used == 0


def test_an_engine_in_lockstep_admits_when_it_is_empty(
    checkpoint: Artifact, alone: list[list[int]], tmp_path: Path
) -> None:
    backend = loaded(checkpoint, tmp_path, "transformers")
    loop = batching(backend, step_tokens=16)
    loop.submit(Job(0, PROMPTS[0], 12))
    first = loop.step()
    for number in (1, 2, 3, 4, 0):
        loop.submit(Job(number + 10, PROMPTS[number], 12))
    written, reports = run(loop)
    written[0].insert(0, first.picked[0][1].token)
    assert [dict(r.started).keys() for r in reports if r.started] == [{11, 12, 13, 14}, {10}]
    assert max(p.fed for r in reports for p in r.parts) == 50  # nothing is cut in pieces
    expected = {0: alone[0]} | {n + 10: alone[n] for n in (1, 2, 3, 4, 0)}
    assert written == expected
