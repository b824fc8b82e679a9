"""Strategies that Optuna carries: TPE, NSGA-II and NSGA-III, each behind the one interface."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from typing import Any

from negawatt.errors import require
from negawatt.tuning.sampler import Draft, Outcome, Pick, Point, Proposal, Strategy
from negawatt.tuning.tree import Tree

POPULATION = 12
"""Of the evolutionary strategies: a search has some dozens of trials, not thousands."""


class OptunaStrategy(Strategy):
    """A sampler of Optuna's on a study in memory.

    Values that are no number, text or truth value of their own are shown to Optuna by their place among the
    choices, so that anything hashable may be a choice.
    """

    def __init__(self, seed: int = 0, objectives: int = 1) -> None:
        super().__init__(seed, objectives)
        self._optuna = _quiet_optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study = self._optuna.create_study(
                directions=["minimize"] * objectives, sampler=self._sampler()
            )
        self._asked: dict[tuple[Any, ...], Any] = {}

    @abstractmethod
    def _sampler(self) -> Any:
        """Optuna's sampler."""

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        trial = self._study.ask()
        chosen: dict[str, Any] = {}

        def choose(name: str, choices: Any) -> Any:
            place = trial.suggest_categorical(name, list(range(len(choices))))
            chosen[name] = choices[place]
            return chosen[name]

        pick(choose)
        earlier = self._asked.pop(_key(chosen), None)
        if earlier is not None:  # asked once more before it was told: the later one stands for both
            self._study.tell(earlier, state=self._optuna.trial.TrialState.FAIL)
        self._asked[_key(chosen)] = trial
        return Draft(chosen)

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        trial, values = self._asked.pop(_key(proposal.point), None), outcome.penalised
        failed = self._optuna.trial.TrialState.FAIL
        if trial is not None and values is None:
            self._study.tell(trial, state=failed)
        elif trial is not None:
            self._study.tell(trial, list(values or ()))
        elif values is not None:
            self._study.add_trial(self._made(proposal, values))

    def _made(self, proposal: Proposal, values: tuple[float, ...]) -> Any:
        """A finished trial of Optuna's for a point that it did not ask for."""
        places = {name: proposal.choices[name].index(value) for name, value in proposal.point.items()}
        distributions = {
            name: self._optuna.distributions.CategoricalDistribution(list(range(len(offered))))
            for name, offered in proposal.choices.items()
        }
        return self._optuna.trial.create_trial(
            params=places, distributions=distributions, values=list(values)
        )


class TpeStrategy(OptunaStrategy):
    """The multivariate tree-structured Parzen estimator (J. Bergstra et al., NeurIPS 2011)."""

    name = "tpe"

    def _sampler(self) -> Any:
        return self._optuna.samplers.TPESampler(
            seed=self.seed, multivariate=True, group=True, n_startup_trials=6, constant_liar=False
        )


class Nsga2Strategy(OptunaStrategy):
    """Evolution by non-dominated sorting (K. Deb et al., IEEE Trans. Evol. Comput. 6, 2002)."""

    name = "nsga2"

    def _sampler(self) -> Any:
        return self._optuna.samplers.NSGAIISampler(
            seed=self.seed, population_size=POPULATION, mutation_prob=0.2
        )


class Nsga3Strategy(OptunaStrategy):
    """Evolution towards reference points (K. Deb, H. Jain, IEEE Trans. Evol. Comput. 18, 2014)."""

    name = "nsga3"

    def _sampler(self) -> Any:
        return self._optuna.samplers.NSGAIIISampler(
            seed=self.seed, population_size=POPULATION, mutation_prob=0.2
        )


def _key(point: Point) -> tuple[Any, ...]:
    return tuple(sorted(point.items(), key=lambda item: item[0]))


def _quiet_optuna() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
