"""`GaussianStrategy`: Bayesian optimisation with a Gaussian process over categorical, conditional points."""

from __future__ import annotations

import numpy as np

from negawatt.tuning.process import Array, expected_improvement, fit, product
from negawatt.tuning.sampler import Draft, Outcome, Pick, Point, Proposal, Strategy, scalarised
from negawatt.tuning.tree import Exhausted, Tree, points

ENUMERATED = 1500
"""A space of up to so many points is judged whole; of a larger one that many open points are drawn."""
STARTUP = 6
"""Trials at random before there is anything to fit."""
NOISE = 0.05
"""Standard deviation of an outcome, where one step of 1 is much."""


class GaussianStrategy(Strategy):
    """Expected improvement under a process whose kernel falls with every dimension that differs.

    Several objectives are made one with weights drawn anew for each proposal.
    """

    name = "gp"

    def __init__(self, seed: int = 0, objectives: int = 1) -> None:
        super().__init__(seed, objectives)
        self._random = np.random.default_rng(seed)
        self._seen: list[tuple[Point, Outcome]] = []
        self._all: list[Point] | None = None

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        self._seen = [(p, o) for p, o in self._seen if p != proposal.point]
        self._seen.append((proposal.point, outcome))

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        told = [outcome for _, outcome in self._seen if outcome.values is not None]
        if len(told) < STARTUP:
            return Draft(tree.walk(pick, self._draw))
        open_ = self._candidates(pick, tree)
        values = self._values()
        dimensions = len({name for point in open_ for name in point} | set(self._dimensions()))
        process = fit(
            [point for point, _ in self._seen], values.tolist(), [NOISE] * len(values), product,
            self._parameters(dimensions, float(np.var(values))), others=open_,
        )  # fmt: skip
        mean, sd = process.predict(open_)
        return Draft(open_[int(np.argmax(expected_improvement(mean, sd, float(values.min()))))])

    def _dimensions(self) -> set[str]:
        return {name for point, _ in self._seen for name in point}

    def _values(self) -> Array:
        """One value for each point seen; what failed counts a step worse than the worst that did not."""
        weights = self._random.dirichlet(np.ones(self.objectives))
        rows = [o.penalised for _, o in self._seen if o.penalised is not None]
        found = iter(scalarised(rows, weights))
        values = [None if o.penalised is None else float(next(found)) for _, o in self._seen]
        worst = max(v for v in values if v is not None)
        return np.asarray([worst + 1.0 if v is None else v for v in values])

    def _parameters(self, dimensions: int, variance: float) -> list[Array]:
        """Candidate parameters: variances around that of the data, weights drawn for each dimension."""
        scales = np.exp(self._random.uniform(np.log(0.05), np.log(3.0), size=(24, dimensions)))
        even = [np.full(dimensions, w) for w in (0.2, 0.6, 1.5)]
        level = max(variance, 1e-4)
        return [np.concatenate([[level * (1 + i % 3)], w]) for i, w in enumerate([*even, *scales])]

    def _candidates(self, pick: Pick, tree: Tree) -> list[Point]:
        """Open points of the space."""
        if self._all is None:
            self._all = list(points(pick, ENUMERATED + 1))
        if len(self._all) > ENUMERATED:
            drawn = [tree.walk(pick, self._draw) for _ in range(ENUMERATED // 4)]
            return list({tuple(p.items()): p for p in drawn}.values())
        open_ = [p for p in self._all if not tree.visited(p)]
        if not open_:
            raise Exhausted("every point of the space has been proposed")
        return open_

    def _draw(self, choices: object) -> object:
        offered = list(choices)  # type: ignore[call-overload]
        return offered[int(self._random.integers(len(offered)))]
