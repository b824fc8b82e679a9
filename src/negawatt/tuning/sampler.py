"""`Sampler`: proposes the next point of a space, learns from what became of it, and never repeats itself.

A space is whatever a function `pick` makes of choices: it is handed a `Choose`, calls it once for each
dimension, and may ask for further dimensions where an earlier answer calls for them (define by run). What is
tried next is a `Strategy`'s affair; that nothing is proposed twice, and that the end of a finite space is
noticed, is the sampler's.

::

    sampler = Sampler(strategy("tpe", seed=0))
    proposal, made = sampler.ask(space.pick)
    sampler.tell(proposal, Outcome((cost_of(made),)))
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from negawatt.errors import UsageError
from negawatt.tuning.tree import Choose, Exhausted, Tree

REPEATS = 20
"""Proposals of known points in a row after which an unknown one is drawn at random."""

T = TypeVar("T")
Point = Mapping[str, Any]
Pick = Callable[[Choose], Any]


@dataclass(frozen=True)
class Proposal:
    """A point to try.

    Attributes:
        number: of the proposal, from 0.
        point: dimension → value, in the order in which the space asks for them.
        choices: dimension → all the values that it offered.
        whole: False where a first, cheap look is all that is asked for; the same point may then be
            proposed once more, whole.
    """

    number: int
    point: Point
    choices: Mapping[str, tuple[Any, ...]]
    whole: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a point.

    Attributes:
        values: one for each objective, lower is better, on scales where a step of 1 is much (logarithms of
            costs, shares); None where the point failed.
        violations: how many constraints it breaks.
        looked: the values come from a first look only, and are less exact.
        drop: of quality, against what everything is compared with; None where it was not judged.
        kept: whether the quality was good enough; None where it was not judged.
        spent: what trying it cost, in whatever unit all outcomes share; None where that is not known.
        chance: that its quality will be proved, from what was judged of it; None where nothing is known.
    """

    values: tuple[float, ...] | None
    violations: int = 0
    looked: bool = False
    drop: float | None = None
    kept: bool | None = None
    spent: float | None = None
    chance: float | None = None

    @property
    def penalised(self) -> tuple[float, ...] | None:
        """The values, each broken constraint counting like a step of 1 in all of them."""
        return None if self.values is None else tuple(v + self.violations for v in self.values)


@dataclass(frozen=True)
class Draft:
    """What a strategy would try: a point, and whether a first look would do."""

    point: Point
    whole: bool = True


class Strategy(ABC):
    """Decides what to try next.

    Args:
        seed: of everything random in it: the same seed and the same outcomes give the same proposals.
        objectives: how many values an outcome has.
    """

    name: ClassVar[str]
    uses_looks: ClassVar[bool] = False
    """Whether it may propose first looks (`Draft.whole` False)."""

    def __init__(self, seed: int = 0, objectives: int = 1) -> None:
        if objectives < 1:
            raise UsageError(f"a search needs at least one objective, not {objectives}")
        self.seed, self.objectives = seed, objectives

    @abstractmethod
    def propose(self, pick: Pick, tree: Tree) -> Draft:
        """What to try next; a point that is known already is learnt again and asked for anew.

        Raises:
            Exhausted: nothing is left that is worth trying.
        """

    @abstractmethod
    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        """Take in an outcome, of its own proposals or of points that came from elsewhere."""


@dataclass
class Sampler:
    """Proposals of a strategy, each point of the space at most once (and once more after a first look).

    Args:
        strategy: what decides.
    """

    strategy: Strategy
    tree: Tree = field(default_factory=Tree)

    def __post_init__(self) -> None:
        self._random = random.Random(self.strategy.seed)  # noqa: S311 - picks a trial, guards no secret
        self._known: dict[tuple[Any, ...], tuple[Proposal, Outcome]] = {}
        self._open: dict[int, Proposal] = {}
        self._count = 0

    def ask(self, pick: Callable[[Choose], T]) -> tuple[Proposal, T]:
        """The next point, and what `pick` makes of it.

        Raises:
            Exhausted: every point has been proposed, or the strategy sees nothing worth trying.
        """
        if self.tree.done and not self.strategy.uses_looks:
            raise Exhausted("every point of the space has been proposed")
        for _ in range(REPEATS):
            draft = self.strategy.propose(pick, self.tree)
            known = self._known.get(_key(draft.point))
            if known is None and not self.tree.visited(draft.point):
                return self._proposed(pick, draft)
            if known is not None:
                if known[1].looked and draft.whole and not known[0].whole:
                    return self._proposed(pick, draft)
                self.strategy.learn(*known)
        return self._proposed(pick, Draft(self.tree.walk(pick, self._random.choice)))

    def _proposed(self, pick: Callable[[Choose], T], draft: Draft) -> tuple[Proposal, T]:
        proposal, made = self._placed(pick, draft.point, draft.whole)
        self._open[proposal.number] = proposal
        return proposal, made

    def tell(self, proposal: Proposal, outcome: Outcome) -> None:
        """What became of a proposal.

        Raises:
            UsageError: it was never proposed or told already, or the outcome has not one finite value for
                each objective.
        """
        self._check(outcome)
        if self._open.pop(proposal.number, None) is not proposal:
            raise UsageError(f"proposal {proposal.number} is not open: it was told already, or never made")
        self._learnt(proposal, outcome)

    def inject(self, pick: Pick, point: Point, outcome: Outcome, *, whole: bool = True) -> None:
        """A point that was tried elsewhere, with its outcome.

        Args:
            whole: False where the point may still be proposed, since it had a first look only.

        Raises:
            UsageError: the point lies outside the space, or the outcome does not fit.
        """
        self._check(outcome)
        proposal, _ = self._placed(pick, point, whole)
        self._learnt(proposal, outcome)

    def _placed(self, pick: Callable[[Choose], T], point: Point, whole: bool) -> tuple[Proposal, T]:
        """A proposal of a point that is marked in the tree, and what `pick` makes of it."""
        chosen: dict[str, Any] = {}
        choices: dict[str, tuple[Any, ...]] = {}

        def choose(name: str, offered: Sequence[Any]) -> Any:
            if name not in point or point[name] not in offered:
                raise UsageError(f"{name} {point.get(name)!r} is not in the space")
            chosen[name], choices[name] = point[name], tuple(offered)
            return point[name]

        made = pick(choose)
        self.tree.close(chosen, choices)
        self._count += 1
        return Proposal(self._count - 1, chosen, choices, whole), made

    def _learnt(self, proposal: Proposal, outcome: Outcome) -> None:
        self._known[_key(proposal.point)] = (proposal, outcome)
        self.strategy.learn(proposal, outcome)

    def _check(self, outcome: Outcome) -> None:
        values, wanted = outcome.values, self.strategy.objectives
        if values is not None and (len(values) != wanted or not np.all(np.isfinite(values))):
            raise UsageError(f"an outcome needs {wanted} finite values, not {values}")


def scalarised(values: Sequence[Sequence[float]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number for each row of objectives: the augmented Chebyshev norm of what is scaled to 0 to 1.

    With weights drawn anew for each proposal, a method for one objective walks along the frontier (ParEGO;
    J. Knowles, IEEE Trans. Evol. Comput. 10, 2006).

    Args:
        values: shape ``(points, objectives)``.
        weights: shape ``(objectives,)``, adding up to 1.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.shape[1] == 1:
        return x[:, 0]
    span = np.ptp(x, axis=0)
    scaled = (x - x.min(axis=0)) / np.where(span > 0, span, 1.0) * weights
    return np.asarray(scaled.max(axis=1) + 0.05 * scaled.sum(axis=1))


def _key(point: Point) -> tuple[Any, ...]:
    return tuple(sorted(point.items(), key=lambda item: item[0]))
