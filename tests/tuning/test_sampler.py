"""Every strategy keeps the sampler's contract; what is special about each beside it."""

from __future__ import annotations

import pytest

from negawatt.errors import UsageError
from negawatt.testing import SamplerContract
from negawatt.tuning import tune
from negawatt.tuning.sampler import Strategy
from negawatt.tuning.strategy import STRATEGIES, strategy


class TestDefault(SamplerContract):
    asks = 14
    whole_space = False  # it ends where nothing more is worth its cost

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("default", seed, objectives)


class TestRandom(SamplerContract):
    asks = 40

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("random", seed, objectives)


class TestGrid(SamplerContract):
    asks = 40

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("grid", seed, objectives)


class TestTpe(SamplerContract):
    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("tpe", seed, objectives)


class TestGaussian(SamplerContract):
    asks = 16

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("gp", seed, objectives)


class TestNsga2(SamplerContract):
    asks = 30

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("nsga2", seed, objectives)


class TestNsga3(SamplerContract):
    asks = 30

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("nsga3", seed, objectives)


class TestReinforcement(SamplerContract):
    asks = 24

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("reinforcement", seed, objectives)


class TestHalving(SamplerContract):
    asks = 12  # whole measurements; three times as many first looks
    whole_space = False

    def make(self, seed: int, objectives: int = 1) -> Strategy:
        return strategy("halving", seed, objectives)


def test_an_unknown_strategy_is_a_wrong_call_that_names_the_known() -> None:
    with pytest.raises(UsageError, match="tpe"):
        strategy("alchemy")
    with pytest.raises(UsageError, match="alchemy"):
        tune("no-such-model", strategy="alchemy")
    assert all(strategy(name).name == name for name in STRATEGIES)
