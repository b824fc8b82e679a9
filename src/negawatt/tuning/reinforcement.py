"""`ReinforcementStrategy`: a policy over choices, learnt by policy gradient, as in architecture search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from negawatt.tuning.process import Array
from negawatt.tuning.sampler import Draft, Outcome, Pick, Proposal, Strategy
from negawatt.tuning.tree import Tree

RATE = 0.6
"""Step of the gradient, for rewards of unit spread."""
ENTROPY = 0.02
"""Weight of the policy's entropy in what is maximised: keeps it from settling too early."""
MEMORY = 0.8
"""Share of the baseline and of the spread that an outcome leaves as it was."""
FAILED = -2.0
"""Advantage of a point that failed, in spreads."""


class ReinforcementStrategy(Strategy):
    """REINFORCE with a moving baseline and an entropy term (R. J. Williams, Machine Learning 8, 1992).

    The policy is a softmax over the choices of each dimension. A dimension's name says what it hangs on (the
    engine's is part of it), so a table of logits by name is a controller of the whole tree; B. Zoph and Q. V.
    Le (ICLR 2017) use a recurrent network where the sequence is long. Several objectives are added up.
    """

    name = "reinforcement"

    def __init__(self, seed: int = 0, objectives: int = 1) -> None:
        super().__init__(seed, objectives)
        self._random = np.random.default_rng(seed)
        self._logits: dict[str, Array] = {}
        self._baseline: float | None = None
        self._spread = 0.0

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        chosen: dict[str, Any] = {}

        def choose(name: str, choices: Sequence[Any]) -> Any:
            share = self._policy(name, len(choices))
            chosen[name] = choices[int(self._random.choice(len(choices), p=share))]
            return chosen[name]

        pick(choose)
        return Draft(chosen)

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        advantage = self._advantage(outcome)
        for name, value in proposal.point.items():
            choices = proposal.choices[name]
            share = self._policy(name, len(choices))
            chosen = np.zeros(len(choices))
            chosen[choices.index(value)] = 1.0
            surprise = -np.log(np.maximum(share, 1e-12))
            entropy_slope = share * (surprise - float(share @ surprise))
            self._logits[name] += RATE * advantage * (chosen - share) + ENTROPY * entropy_slope

    def _policy(self, name: str, n: int) -> Array:
        """Probabilities of the choices of a dimension."""
        logits = self._logits.get(name)
        if logits is None or logits.size != n:
            logits = self._logits[name] = np.zeros(n)
        raised = np.exp(logits - logits.max())
        return np.asarray(raised / raised.sum())

    def _advantage(self, outcome: Outcome) -> float:
        """How much better than usual, in spreads, at most 3 either way."""
        values = outcome.penalised
        if values is None:
            return FAILED
        reward = -sum(values)
        if self._baseline is None:
            self._baseline = reward
            return 0.0
        gap = reward - self._baseline
        self._spread = MEMORY * self._spread + (1 - MEMORY) * abs(gap)
        self._baseline = MEMORY * self._baseline + (1 - MEMORY) * reward
        return float(np.clip(gap / self._spread, -3.0, 3.0)) if self._spread > 0 else 0.0
