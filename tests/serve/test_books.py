"""Whatever happens in a worker's steps, what all requests owe and what is beside them make the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.energy import Energy, Provenance
from negawatt.engine.batching import Part, Report
from negawatt.serve.books import Account, Books
from negawatt.serve.price import CpuTimePrice, Spent
from negawatt.serve.weights import PLAIN, Weights

WEIGHTS = st.builds(
    Weights,
    *(st.floats(0, 1, allow_subnormal=False) for _ in range(5)),
    source=st.just("drawn"),
)
PARTS = st.lists(
    st.builds(
        Part,
        st.integers(0, 5),
        st.sampled_from(["prefill", "decode"]),
        st.integers(1, 500),
        st.integers(0, 4000),
    ),
    max_size=6,
    unique_by=lambda part: part.job,
)
CPU_S = st.floats(0, 5, allow_subnormal=False)


class Counter:
    """A price whose joules have nothing to do with CPU time, as a counter's: drawn ones, in turn."""

    boundary = "chip"

    def __init__(self, drawn: list[tuple[float, float]]) -> None:
        self._drawn = iter(drawn)
        self.dynamic_j = self.idle_j = 0.0

    def since_last(self, cpu_s: float) -> Spent:
        dynamic_j, idle_j = next(self._drawn, (1.0, 0.5))
        self.dynamic_j += dynamic_j
        self.idle_j += idle_j
        return Spent(Energy.measured(dynamic_j, 0.1), Energy.measured(idle_j, 0.1))


@given(weights=WEIGHTS, parts=PARTS)
def test_the_shares_of_a_step_are_one_step(weights: Weights, parts: list[Part]) -> None:
    shares = weights.shares(parts)
    assert len(shares) == len(parts) and all(share >= 0 for share in shares)
    if parts:
        assert math.fsum(shares) == pytest.approx(1)


@given(
    weights=WEIGHTS,
    steps=st.lists(st.tuples(PARTS, CPU_S, st.booleans(), st.booleans()), max_size=30),
    joules=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=40),
    opened=st.sets(st.integers(0, 5)),
)
def test_accounts_and_what_is_beside_them_are_the_meter(
    weights: Weights,
    steps: list[tuple[list[Part], float, bool, bool]],
    joules: list[tuple[float, float]],
    opened: set[int],
) -> None:
    price = Counter(joules)
    books = Books(price)
    books.weights = weights
    accounts = {job: Account() for job in opened}
    for job, account in accounts.items():
        books.open(job, account)
    spent_s = 0.0
    for parts, cpu_s, idles, ends in steps:
        alone = [replace(part, own_cpu_s=part.fed / 1000) for part in parts]
        books.step(Report(tuple(alone), cpu_s=cpu_s, beside_cpu_s=0.01 if ends else 0.0))
        spent_s += cpu_s
        if idles:
            books.idle(cpu_s)
            spent_s += cpu_s
        if ends and parts:
            books.close([parts[0].job])
    books.settle()
    everybody = [*accounts.values(), books.beside]
    assert sum(a.cpu_s for a in everybody) == pytest.approx(spent_s)
    dynamic = sum((a.prefill.energy.value_j or 0) + (a.decode.energy.value_j or 0) for a in everybody)
    idle = sum(a.idle.energy.value_j or 0 for a in everybody)
    assert dynamic == pytest.approx(price.dynamic_j, rel=1e-9, abs=1e-9)
    assert idle == pytest.approx(price.idle_j, rel=1e-9, abs=1e-9)


def test_what_one_alone_took_it_alone_owes() -> None:
    books = Books(Counter([]))
    held, free = Account(), Account()
    books.open(1, held)
    books.open(2, free)
    books.weights = Weights(1.0, 0.0, 0.0, 0.0, 0.0, "equal shares")
    parts = (Part(1, "decode", 1, 5, own_cpu_s=0.5), Part(2, "decode", 1, 5))
    books.step(Report(parts, cpu_s=2.0, beside_cpu_s=0.3))
    assert (held.cpu_s, free.cpu_s, books.beside.cpu_s) == pytest.approx((1.1, 0.6, 0.3))
    books.step(
        Report(parts, cpu_s=0.4, beside_cpu_s=0.3)
    )  # a clock of threads that runs ahead of the process
    assert held.cpu_s + free.cpu_s + books.beside.cpu_s == pytest.approx(2.4)


def test_the_share_follows_the_work() -> None:
    weights = Weights(4.0, 1.0, 0.0, 1.0, 0.01, "stated")
    reading, near, far = Part(0, "prefill", 96, 0), Part(1, "decode", 1, 0), Part(2, "decode", 1, 1000)
    shares = weights.shares([near, far])
    assert shares == pytest.approx([3 / 16, 13 / 16])  # half of 4 each, a token each, and 1000 × 0.01
    shares = weights.shares([reading, near])
    assert shares == pytest.approx([98 / 101, 3 / 101])
    assert Weights(0, 0, 0, 0, 0, "nothing").shares([near, far]) == [0.5, 0.5]


def test_a_prompt_is_weighed_by_what_it_looks_back_at() -> None:
    weights = Weights(0.0, 0.0, 1.0, 0.0, 0.0, "pairs alone")
    whole = [Part(0, "prefill", 100, 0), Part(1, "prefill", 1, 0)]
    pieces = [Part(0, "prefill", 50, 0), Part(1, "prefill", 50, 50)]
    assert weights.shares(whole)[0] == pytest.approx(5000 / 5000.5)
    assert weights.shares(pieces) == pytest.approx([1250 / 5000, 3750 / 5000])


def test_joules_of_the_model_follow_cpu_time_and_split_into_idle_and_work() -> None:
    price = CpuTimePrice()
    books = Books(price)
    account = Account()
    books.open(1, account)
    books.step(Report((Part(1, "prefill", 9, 0),), cpu_s=2.0))
    books.step(Report((Part(1, "decode", 1, 9),), cpu_s=1.0))
    books.close([1])
    whole = account.prefill.energy + account.decode.energy + account.idle.energy
    expected = price._power.energy(3.0)
    assert whole.value_j == pytest.approx(expected.value_j)
    assert (whole.low_j, whole.high_j) == pytest.approx((expected.low_j, expected.high_j))
    assert whole.provenance is Provenance.ESTIMATED and whole.reason == expected.reason
    assert account.prefill.energy.value_j == pytest.approx(2 * (account.decode.energy.value_j or 0))
    assert account.idle.energy.value_j == pytest.approx(price._power.idle(3.0).value_j)


def test_what_a_counter_lost_is_missing_and_not_zero() -> None:
    class Dead:
        boundary = "chip"

        def since_last(self, cpu_s: float) -> Spent:
            return Spent(Energy.missing("the counter died"), Energy.zero())

    books = Books(Dead())
    account = Account()
    books.open(1, account)
    books.step(Report((Part(1, "decode", 1, 5),), cpu_s=1.0))
    books.close([1])
    assert account.decode.energy.is_missing and account.decode.energy.reason == "the counter died"
    assert account.prefill.energy == Energy.zero()
    assert account.cpu_s == 1.0


def test_the_rule_of_thumb_is_called_one() -> None:
    assert "no steps" in PLAIN.source
