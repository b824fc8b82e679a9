"""`SamplerContract`: what every strategy of a search must do, on small spaces whose answers are known.

::

    class TestMyStrategy(SamplerContract):
        def make(self, seed: int, objectives: int = 1) -> Strategy:
            return MyStrategy(seed, objectives)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from negawatt.errors import UsageError
from negawatt.tuning.sampler import Outcome, Proposal, Sampler, Strategy
from negawatt.tuning.tree import Choose, Exhausted, points

KINDS = ("mill", "kiln", "loom")
"""Of machine, in the space that the suite searches; a kiln has a fuel, a loom two dimensions of its own."""
_EFFECTS: dict[str, dict[Any, float]] = {
    "kind": {"mill": 0.9, "kiln": 0.3, "loom": 0.5},
    "speed": {1: 0.25, 2: 0.0, 4: 0.15, 8: 0.45},
    "kiln.fuel": {"peat": 0.5, "wood": 0.0, "coal": 0.3},
    "loom.warp": {"wool": 0.2, "flax": 0.4},
    "loom.weft": {"wool": 0.3, "flax": 0.1, "silk": 0.6},
}


def space(choose: Choose) -> dict[str, Any]:
    """A conditional space of 40 points."""
    made = {"kind": choose("kind", KINDS), "speed": choose("speed", (1, 2, 4, 8))}
    if made["kind"] == "kiln":
        made["kiln.fuel"] = choose("kiln.fuel", ("peat", "wood", "coal"))
    if made["kind"] == "loom":
        made["loom.warp"] = choose("loom.warp", ("wool", "flax"))
        made["loom.weft"] = choose("loom.weft", ("wool", "flax", "silk"))
    return made


def separable(made: dict[str, Any]) -> float:
    """The sum of the effects of the choices; least for the kiln on wood at speed 2."""
    return sum(_EFFECTS[name][value] for name, value in made.items())


Told = list[tuple[dict[str, Any], Outcome]]


class SamplerContract(ABC):
    """Subclass it and supply `make`."""

    asks: ClassVar[int] = 24
    """Proposals within which the optimum of the small separable table is found, in most of five searches."""
    whole_space: ClassVar[bool] = True
    """Whether it goes on to the last point of a finite space, however little it expects there."""

    @abstractmethod
    def make(self, seed: int, objectives: int = 1) -> Strategy:
        """The strategy under test."""

    def searched(
        self,
        sampler: Sampler,
        outcome: Callable[[dict[str, Any]], Outcome],
        most: int = 10_000,
        pick: Callable[[Choose], dict[str, Any]] = space,
    ) -> Told:
        """What was proposed whole, and what came of it, until the sampler ends or `most` are told."""
        told: Told = []
        while len(told) < most:
            try:
                proposal, made = sampler.ask(pick)
            except Exhausted:
                break
            found = outcome(made)
            if not proposal.whole:
                found = Outcome(found.values, found.violations, looked=True)
            else:
                told.append((made, found))
            sampler.tell(proposal, found)
        return told

    @staticmethod
    def priced(made: dict[str, Any]) -> Outcome:
        return Outcome((separable(made),))

    # -- the promises ----------------------------------------------------------------------------

    def test_has_a_name(self) -> None:
        assert self.make(0).name

    def test_the_same_seed_proposes_the_same(self) -> None:
        first, second, other = (
            [made for made, _ in self.searched(Sampler(self.make(seed)), self.priced, 15)]
            for seed in (3, 3, 4)
        )
        assert first == second
        assert other

    def test_proposes_only_what_the_space_offers(self) -> None:
        inside = list(points(space))

        def checked(made: dict[str, Any]) -> Outcome:
            assert made in inside
            return self.priced(made)

        assert self.searched(Sampler(self.make(1)), checked, 20)

    def test_a_proposal_says_what_each_dimension_offered(self) -> None:
        proposal, made = Sampler(self.make(0)).ask(space)
        assert proposal.point == made
        assert list(proposal.choices) == list(made)
        assert all(made[name] in offered for name, offered in proposal.choices.items())

    def test_never_repeats_itself_and_ends(self) -> None:
        sampler = Sampler(self.make(2))
        tried = [tuple(made.items()) for made, _ in self.searched(sampler, self.priced)]
        assert len(tried) == len(set(tried)) <= len(list(points(space)))
        if self.whole_space:
            assert len(tried) == len(list(points(space)))
        with pytest.raises(Exhausted):
            sampler.ask(space)

    def test_a_space_of_one_point_is_one_proposal(self) -> None:
        def alone(choose: Choose) -> dict[str, Any]:
            return {"only": choose("only", ("this",))}

        assert len(self.searched(Sampler(self.make(0)), lambda _: Outcome((1.0,)), pick=alone)) == 1

    def test_failures_are_taken_and_do_not_end_the_search(self) -> None:
        def brittle(made: dict[str, Any]) -> Outcome:
            return Outcome(None) if made["kind"] == "kiln" else self.priced(made)

        told = self.searched(Sampler(self.make(1)), brittle, self.asks)
        assert any(o.values is not None for _, o in told)

    def test_a_space_where_all_fails_ends_without_an_error(self) -> None:
        told = self.searched(Sampler(self.make(1)), lambda made: Outcome(None))
        assert len({tuple(made.items()) for made, _ in told}) == len(told)

    def test_a_constant_objective_is_no_trouble(self) -> None:
        assert self.searched(Sampler(self.make(1)), lambda made: Outcome((0.7,)), 20)

    def test_broken_constraints_are_taken(self) -> None:
        def dear(made: dict[str, Any]) -> Outcome:
            return Outcome((separable(made),), violations=int(made["speed"] == 2))

        told = self.searched(Sampler(self.make(1)), dear, self.asks)
        assert any(not outcome.violations for _, outcome in told)

    def test_injected_points_are_known_and_not_proposed(self) -> None:
        sampler = Sampler(self.make(1))
        known = list(points(space))[::2]
        for point in known:
            sampler.inject(space, point, self.priced(point))
        assert all(made not in known for made, _ in self.searched(sampler, self.priced))

    def test_what_lies_outside_cannot_be_injected(self) -> None:
        with pytest.raises(UsageError, match="not in the space"):
            Sampler(self.make(0)).inject(space, {"kind": "mill", "speed": 3}, Outcome((1.0,)))

    def test_an_outcome_is_told_once_and_fits(self) -> None:
        sampler = Sampler(self.make(0))
        proposal, made = sampler.ask(space)
        with pytest.raises(UsageError, match="finite"):
            sampler.tell(proposal, Outcome((math.nan,)))
        with pytest.raises(UsageError, match="1 finite value"):
            sampler.tell(proposal, Outcome((1.0, 2.0)))
        sampler.tell(proposal, self.priced(made))
        with pytest.raises(UsageError, match="not open"):
            sampler.tell(proposal, self.priced(made))

    def test_several_proposals_may_be_open_at_once(self) -> None:
        sampler = Sampler(self.make(2))
        asked: list[tuple[Proposal, dict[str, Any]]] = [sampler.ask(space) for _ in range(5)]
        assert len({tuple(made.items()) for _, made in asked}) == 5
        for proposal, made in reversed(asked):
            sampler.tell(proposal, Outcome((separable(made),), looked=not proposal.whole))
        assert self.searched(sampler, self.priced, 5)

    def test_several_objectives(self) -> None:
        def both(made: dict[str, Any]) -> Outcome:
            return Outcome((separable(made), -0.1 * made["speed"]))

        told = self.searched(Sampler(self.make(1, 2)), both, 30)
        assert told
        cheap = min(o.values[0] for _, o in told if o.values)
        fast = min(o.values[1] for _, o in told if o.values)
        assert cheap < 1.0
        assert fast <= -0.4

    def test_finds_the_optimum_of_a_separable_table(self) -> None:
        best = min(separable(point) for point in points(space))
        found = 0
        for seed in range(5):
            told = self.searched(Sampler(self.make(seed)), self.priced, self.asks)
            found += min(o.values[0] for _, o in told if o.values) <= best + 1e-9
        assert found >= 3
