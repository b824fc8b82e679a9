"""How many tokens to propose: by measured costs and what was accepted, none where it does not pay."""

from __future__ import annotations

import random

import pytest

from negawatt.engine.proposal_length import FIRST, MOST, ProposalLength


def learnt(acceptance: float, proposal_s: float, verifying_s: float, n: int = 400) -> ProposalLength:
    """What is known after calls of a model of 1 s that adds `verifying_s` for each proposal."""
    dice, length = random.Random(1), ProposalLength()
    length.read(100, 100 * verifying_s)
    for _ in range(n):
        proposed = length.next(1000)
        accepted = 0
        while accepted < proposed and dice.random() < acceptance:
            accepted += 1
        if proposed:
            length.proposed(proposed, proposed * proposal_s)
        length.verified(proposed, accepted, 1 + proposed, 1 + proposed * verifying_s)
    return length


@pytest.mark.parametrize(
    ("acceptance", "proposal_s", "verifying_s", "least", "most"),
    [
        (0.95, 0.02, 0.02, 5, MOST),  # a good draft of a model that waits for memory
        (0.6, 0.1, 0.1, 1, 3),
        (0.9, 0.02, 1.0, 0, 0),  # verifying a token takes as long as writing one
        (0.9, 0.95, 0.02, 0, 0),  # the draft is as slow as the model
        (0.05, 0.1, 0.1, 0, 0),  # the draft is wrong
    ],
)
def test_the_length_is_what_measured_costs_make_of_it(
    acceptance: float, proposal_s: float, verifying_s: float, least: int, most: int
) -> None:
    length = learnt(acceptance, proposal_s, verifying_s)
    assert least <= length.best(1000) <= most
    assert length.best(2) <= 2


@pytest.mark.parametrize("n", [0, 1, 4, 8])
@pytest.mark.parametrize("acceptance", [0.2, 0.7, 0.95])
def test_the_cost_of_a_token_is_that_of_many_simulated_calls(n: int, acceptance: float) -> None:
    length = ProposalLength()
    length.acceptance.amount, length.acceptance.weight = acceptance, 1.0
    length.proposed(4, 4 * 0.1)
    length.verified(0, 0, 1, 1.0)
    length.verified(0, 0, 5, 1.0 + 4 * 0.05)
    dice, written, calls = random.Random(2), 0, 20_000
    for _ in range(calls):
        right = 0
        while right < n and dice.random() < acceptance:
            right += 1
        written += 1 + right
    assert length.cpu_s_per_token(n) == pytest.approx((1 + n * 0.15) * calls / written, rel=0.02)


@pytest.mark.parametrize("unread", [1, 400])
def test_trying_a_draft_that_does_not_pay_takes_a_hundredth(unread: int) -> None:
    length = learnt(0.1, 0.5, 0.8)
    assert length.best(1000) == 0
    tried_s = model_s = 0.0
    for _ in range(40_000):
        if n := length.next(1000, unread):
            length.proposed(n, n * 0.5)
            tried_s += unread * length.reading_s.value + n * (0.5 + 0.8)
        length.verified(n, 0, 1 + n, 1 + n * 0.8)
        model_s += 1 + n * 0.8
    assert 0.005 * model_s < tried_s < 0.011 * model_s


def test_a_draft_that_begins_to_pay_is_found_again() -> None:
    length = learnt(0.0, 0.05, 0.05, n=300)
    assert length.best(1000) == 0
    for _ in range(6_000):
        n = length.next(1000)
        if n:
            length.proposed(n, n * 0.05)
        length.verified(n, n, 1 + n, 1 + n * 0.05)
    assert length.best(1000) > 2


def test_a_long_prompt_before_a_short_answer_is_not_read_for_nothing() -> None:
    length = learnt(0.9, 0.05, 0.05)
    assert length.pays(room=500, unread=100)
    assert not length.pays(room=3, unread=1000)
    assert length.next(3, unread=1000) == 0


def test_the_first_calls_try_both() -> None:
    length = ProposalLength()
    assert tuple(length.next(1000) for _ in FIRST) == FIRST
    assert {0} < set(FIRST)
