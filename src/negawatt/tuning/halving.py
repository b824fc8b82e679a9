"""`HalvingStrategy`: many first looks, and the whole measurement only for the best third of them."""

from __future__ import annotations

import random

import numpy as np

from negawatt.tuning.sampler import Draft, Outcome, Pick, Point, Proposal, Strategy, scalarised
from negawatt.tuning.tree import Exhausted, Tree

BRACKET = 9
"""Points that race one another."""
KEPT = 3
"""One in so many goes on (K. Jamieson, A. Talwalkar, AISTATS 2016: successive halving)."""


class HalvingStrategy(Strategy):
    """Successive halving on two rungs: a look at a few tokens, then whole answers and the quality items.

    A bracket's points are drawn at random. When all have had their look, the cheapest third is measured;
    then the next bracket begins. Of several objectives the even mean of their scaled values counts.
    """

    name = "halving"
    uses_looks = True

    def __init__(self, seed: int = 0, objectives: int = 1) -> None:
        super().__init__(seed, objectives)
        self._random = random.Random(seed)  # noqa: S311 - picks a trial, guards no secret
        self._racing: list[tuple[Point, Outcome]] = []
        self._asked = 0
        self._promoted: list[Point] = []

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        if self._promoted:
            return Draft(self._promoted.pop(0))
        if self._asked < BRACKET:
            try:
                point = tree.walk(pick, self._random.choice)
                self._asked += 1
                return Draft(point, whole=False)
            except Exhausted:
                if not self._racing:
                    raise
        self._promoted = self._best()
        self._racing, self._asked = [], 0
        return self.propose(pick, tree)

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        if outcome.looked and outcome.values is not None:
            self._racing.append((proposal.point, outcome))

    def _best(self) -> list[Point]:
        rows = [o.penalised for _, o in self._racing if o.penalised is not None]
        if not rows:
            return []
        ranking = scalarised(rows, np.full(self.objectives, 1 / self.objectives))
        order = np.argsort(ranking, kind="stable")[: max(1, len(rows) // KEPT)]
        return [self._racing[int(i)][0] for i in order]
