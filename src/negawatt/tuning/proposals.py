"""`Proposals`: a strategy's sampler on the space of a search, fed with its trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from negawatt.errors import NegawattError
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.objectives import ENERGY, values
from negawatt.tuning.predicted import PredictedStrategy, promising, traits
from negawatt.tuning.predictor import Observation
from negawatt.tuning.sampler import Outcome, Proposal, Sampler
from negawatt.tuning.space import Space
from negawatt.tuning.strategy import strategy
from negawatt.tuning.tree import Exhausted
from negawatt.tuning.trial import QUALITY, Trial

SKIPS = 200
"""Proposals in a row that may be passed over for what is known of their engine or arithmetic."""


class Proposals:
    """What to try next, and what became of it, in the search's own terms.

    Args:
        space: what may be tried.
        name: of the strategy.
        seed: of the strategy.
        limit: on the drop of quality; None where there is none.
        starts: candidates that the default strategy tries first.
        earlier: observations of earlier searches, for the default strategy.
        objectives: names of what is wanted little of.
        chance: of a trial whose quality was judged, to be proved.
    """

    def __init__(
        self,
        space: Space,
        name: str,
        seed: int,
        *,
        limit: float | None = None,
        starts: Sequence[Candidate] = (),
        earlier: Sequence[Observation] = (),
        objectives: tuple[str, ...] = (ENERGY,),
        chance: Callable[[Trial], float] | None = None,
    ) -> None:
        self.space, self.objectives, self._chance = space, objectives, chance
        options: dict[str, Any] = {}
        if name == "default":
            options = {
                "limit": limit,
                "identity": lambda candidate: candidate.arithmetic,
                "starts": [space.parameters(candidate) for candidate in promising(starts)],
                "traits": traits,
                "earlier": earlier if objectives == (ENERGY,) else (),
            }
        self.strategy = strategy(name, seed, len(objectives), **options)
        self._sampler = Sampler(self.strategy)
        self.ended = ""

    def next(self, skip: Callable[[Candidate], Trial | None]) -> tuple[Proposal, Candidate] | None:
        """The next candidate, or None where nothing is left; `ended` then says why.

        Args:
            skip: the trial that speaks against a candidate, whose fate is then taken for the candidate's.
        """
        for _ in range(SKIPS):
            try:
                proposal, candidate = self._sampler.ask(self.space.pick)
            except Exhausted as exc:
                self.ended = str(exc)
                return None
            against = skip(candidate)
            if against is None:
                return proposal, candidate
            self._sampler.tell(proposal, self._outcome(against))
        self.ended = f"{SKIPS} proposals in a row had no prospect"
        return None

    def tell(self, trial: Trial, proposal: Proposal | None) -> None:
        """What became of a proposal, or of a candidate that was tried without one."""
        if proposal is not None:
            self._sampler.tell(proposal, self._outcome(trial))
            return
        try:
            point = self.space.parameters(trial.candidate)
        except NegawattError:
            return  # the baseline may lie outside the space
        self._sampler.inject(self.space.pick, point, self._outcome(trial))

    def looked(self, proposal: Proposal, cost: float) -> None:
        """A first look was all that was asked for."""
        self._sampler.tell(proposal, Outcome((math.log(cost),), looked=True))

    def trust(self) -> dict[str, Any] | None:
        """How often the predictor's intervals held what was then measured; None where none were given."""
        if not isinstance(self.strategy, PredictedStrategy) or not self.strategy.foretold:
            return None
        return self.strategy.trust()

    def _outcome(self, trial: Trial) -> Outcome:
        """A trial as a strategy sees it: the logarithm of its cost, and what else is wanted little of."""
        found = values(trial, self.objectives)
        if found is None:
            return Outcome(None)
        judged = trial.figures.get("quality_drop")
        struck = QUALITY in trial.violations
        return Outcome(
            found,
            len(trial.violations),
            looked=trial.state == "pruned",
            drop=float(judged["drop"]) if judged else None,
            kept=False if struck else (True if judged else None),
            spent=trial.figures.get("cpu_s_spent") or None,
            chance=self._chance(trial) if judged and self._chance else None,
        )
