"""What short answers tell of whole ones."""

from __future__ import annotations

from typing import Any, cast

import pytest

from negawatt.engine import Request
from negawatt.engine.decode import Step
from negawatt.profiling.window import Job, Window
from negawatt.tuning.attempt import SCREEN_TOKENS, answered_in, to_whole

PROMPT_S, TOKEN_S, BESIDE_S = 0.020, 0.002, 0.001


def answered(jobs: list[Job]) -> Window:
    """As an engine would that takes this long for each prompt, and for each later token."""
    lengths = [job.max_new_tokens for job in jobs if isinstance(job, Request)]
    steps = [Step("prefill", 1, 50, 0, 1, PROMPT_S, PROMPT_S) for _ in lengths]
    steps += [Step("decode", 1, 1, 50, 1, TOKEN_S, TOKEN_S) for n in lengths for _ in range(n - 1)]
    cpu_s = sum(step.cpu_s for step in steps) + BESIDE_S
    nothing = cast(Any, None)
    return Window((50,) * len(lengths), tuple(lengths), (), tuple(steps), cpu_s, cpu_s, 1.0, nothing)


@pytest.mark.parametrize("lengths", [[96], [40, 200]])
def test_a_short_answer_foretells_what_a_token_of_the_whole_one_costs(lengths: list[int]) -> None:
    """Without that it is told 1.8 times too dear, as the prompt is divided by 16 tokens."""
    jobs: list[Job] = [Request([1] * 50, n) for n in lengths]
    short, whole = answered([answered_in(job, SCREEN_TOKENS) for job in jobs]), answered(jobs)
    assert short.cpu_s_per_token > 1.3 * whole.cpu_s_per_token
    assert short.cpu_s_per_token * to_whole([short], jobs) == pytest.approx(whole.cpu_s_per_token, rel=1e-9)
    twice = answered([answered_in(job, SCREEN_TOKENS) for job in jobs * 2])  # again in the same window
    found = twice.cpu_s_per_token * to_whole([twice], jobs)
    assert found == pytest.approx(whole.cpu_s_per_token, rel=0.01)


def test_whole_answers_are_left_as_they_are() -> None:
    jobs: list[Job] = [Request([1] * 50, 12)]
    assert to_whole([answered(jobs)], jobs) == 1.0
