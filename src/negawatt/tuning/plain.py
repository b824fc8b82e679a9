"""`RandomStrategy` and `GridStrategy`: what every other strategy must beat."""

from __future__ import annotations

import random

from negawatt.tuning.sampler import Draft, Outcome, Pick, Proposal, Strategy
from negawatt.tuning.tree import Tree


class RandomStrategy(Strategy):
    """Each dimension drawn evenly from the choices that lead to points not tried yet."""

    name = "random"

    def __init__(self, seed: int = 0, objectives: int = 1) -> None:
        super().__init__(seed, objectives)
        self._random = random.Random(seed)  # noqa: S311 - picks a trial, guards no secret

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        return Draft(tree.walk(pick, self._random.choice))

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        """Nothing is learnt."""


class GridStrategy(Strategy):
    """Every point in order, the last dimension fastest."""

    name = "grid"

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        return Draft(tree.walk(pick, lambda choices: choices[0]))

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        """Nothing is learnt."""
