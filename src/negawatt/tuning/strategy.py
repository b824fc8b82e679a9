"""Strategies by name."""

from __future__ import annotations

import importlib
from typing import Any

from negawatt.errors import UsageError
from negawatt.tuning.sampler import Strategy

STRATEGIES = {
    "default": "predicted:PredictedStrategy",
    "random": "plain:RandomStrategy",
    "grid": "plain:GridStrategy",
    "tpe": "borrowed:TpeStrategy",
    "gp": "gaussian:GaussianStrategy",
    "nsga2": "borrowed:Nsga2Strategy",
    "nsga3": "borrowed:Nsga3Strategy",
    "reinforcement": "reinforcement:ReinforcementStrategy",
    "halving": "halving:HalvingStrategy",
}
"""Name → file and class."""


def check_strategy(name: str) -> None:
    """Refuse a name that no strategy has.

    Raises:
        UsageError: the sentence names those there are.
    """
    if name not in STRATEGIES:
        raise UsageError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}")


def strategy(name: str, seed: int = 0, objectives: int = 1, **options: Any) -> Strategy:
    """A strategy by its name.

    Raises:
        UsageError: there is no such strategy.
        MissingDependency: it is borrowed from a library that is not installed.
    """
    check_strategy(name)
    file, _, kind = STRATEGIES[name].partition(":")
    made = getattr(importlib.import_module(f"negawatt.tuning.{file}"), kind)
    found: Strategy = made(seed, objectives, **options)
    return found
