"""`Picker`: chooses the next token of one sequence from its logits, and tells how likely it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from negawatt.engine.grammar import Constraint

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Picked:
    """A token with its log-probability in nats under the model (temperature 1), and the likeliest ones.

    Both are None and empty where they were not asked for.
    """

    token: int
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Picker:
    """Args:
    temperature: 0 takes the likeliest token; above 0 samples.
    top_p: nucleus: sample among the likeliest tokens that hold this probability together.
    seed: the same seed draws the same tokens from the same logits.
    log_probs: how many of the likeliest tokens to tell beside each; None tells no probabilities at all.
    constraint: holds the sequence to a grammar; probabilities are told as they were without it.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        log_probs: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.temperature, self.top_p, self.log_probs = temperature, top_p, log_probs
        self.constraint = constraint
        self._random = np.random.default_rng(seed) if temperature > 0 else None

    def pick(self, logits: Row) -> Picked:
        """From one row of logits, shape ``(vocabulary,)``.

        Raises:
            EngineError: the sequence cannot be held to its grammar.
        """
        left = logits if self.constraint is None else self.constraint.masked(logits)
        token = int(left.argmax()) if self._random is None else self._draw(left, self._random)
        if self.constraint is not None:
            self.constraint.accept(token)
        if self.log_probs is None:
            return Picked(token)
        highest = float(logits.max())
        whole = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
        top: tuple[tuple[int, float], ...] = ()
        if self.log_probs:
            best = np.argpartition(logits, -self.log_probs)[-self.log_probs :]
            best = best[np.argsort(-logits[best], kind="stable")]
            top = tuple((int(i), float(logits[i]) - whole) for i in best)
        return Picked(token, float(logits[token]) - whole, top)

    def _draw(self, logits: Row, random: np.random.Generator) -> int:
        weights = np.exp((logits - logits.max()) / np.float32(self.temperature))
        whole = float(weights.sum(dtype=np.float64))
        among: NDArray[np.intp] | None = None
        if self.top_p < 1.0:
            # All tokens below this weight together hold less than what the nucleus leaves out.
            among = np.flatnonzero(weights * np.float32(len(weights)) >= (1.0 - self.top_p) * whole)
            weights = weights[among]
            order = np.argsort(-weights, kind="stable")
            running = np.cumsum(weights[order], dtype=np.float64)
            last = int(np.searchsorted(running, self.top_p * whole))
            among, weights = among[order[: last + 1]], weights[order[: last + 1]]
        running = np.cumsum(weights, dtype=np.float64)
        place = int(np.searchsorted(running, random.random() * running[-1], side="right"))
        place = min(place, len(weights) - 1)
        return place if among is None else int(among[place])
