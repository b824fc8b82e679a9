"""`PredictedStrategy`, the default: models of cost and quality choose what is worth measuring."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from negawatt.compress import parse
from negawatt.engine.backends import backend
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.portfolio import weights
from negawatt.tuning.predictor import (
    APPLIED,
    BITS,
    REPACKED,
    STEM,
    Observation,
    Predictor,
    additive_model,
    chances,
    deciding,
)
from negawatt.tuning.process import Array, expected_improvement
from negawatt.tuning.sampler import Draft, Outcome, Pick, Point, Proposal, Strategy, scalarised
from negawatt.tuning.tree import Exhausted, Tree, points

ENUMERATED = 3000
"""A space of up to so many points is judged whole; of a larger one open points are drawn."""
DRAWN = 600
NEAR = 5
"""Best points whose neighbours are judged too, where the space is large."""
STARTUP = 2
"""Trials before the model is asked; they are drawn at random where nothing is known from elsewhere."""
WORTH = 0.003
"""Expected improvement, as a share of the cost, below which nothing more is proposed."""
NEGLIGIBLE = 1e-3
"""What is less likely to be the choice counts for nothing."""
OWN = 2
"""Points that are measured before the search may end, however much earlier searches saw."""
SPEND_NOISE = 0.4
"""Standard deviation of the logarithm of what a trial spends: it may be a look, or make weights."""
TRUST = 0.9
"""Confidence of the intervals that the model's calibration is told with."""

UNKNOWN_BITS = 20
"""What weights in the artifact's own form are taken for: after what engines make smaller, before 32."""
Key = tuple[tuple[str, Any], ...]


class PredictedStrategy(Strategy):
    """Proposes the point of the largest expected improvement times the chance that it keeps its quality.

    Args:
        limit: on the drop of quality; None where there is none.
        identity: of what `pick` makes: points of one identity have the same quality.
        earlier: observations of earlier runs on this machine, of this model.
        starts: points to try first, in this order, but for engines and batches that earlier runs tried: what
            they saw at batch 1 tells little of batch 64.
        traits: further properties of what `pick` makes, which different choices may share: the bits of a
            weight, whichever engine's name for the format says them.

    Attributes:
        foretold: for each point that was predicted and then measured: the ends of the interval before, and
            what came (logarithms).
    """

    name = "default"

    def __init__(
        self,
        seed: int = 0,
        objectives: int = 1,
        *,
        limit: float | None = None,
        identity: Callable[[Any], Hashable] = lambda made: None,
        earlier: Sequence[Observation] = (),
        starts: Sequence[Point] = (),
        traits: Callable[[Any], Point] = lambda made: {},
    ) -> None:
        super().__init__(seed, objectives)
        self.limit, self.identity, self.traits = limit, identity, traits
        self.predictor = Predictor(earlier)
        self.foretold: list[tuple[float, float, float]] = []
        self._numbers = np.random.default_rng(seed)
        self._random = random.Random(seed)  # noqa: S311 - picks a trial, guards no secret
        self._earlier = list(earlier)
        begun = {_beginning(each.point) for each in self._earlier}
        self._starts = [start for start in starts if _beginning(start) not in begun]
        self._told: dict[Key, tuple[Proposal, Outcome]] = {}
        self._identities: dict[Key, Hashable] = {}
        self._described: dict[Key, Point] = {}  # with traits, as the models see it
        self._expected: dict[Key, tuple[float, float]] = {}
        self._all: list[Point] | None = None
        self._deciding: set[str] = set()

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        key = _key(proposal.point)
        self._told[key] = (proposal, outcome)
        expected = self._expected.pop(key, None)
        if expected is not None and outcome.values is not None:
            self.foretold.append((*expected, outcome.values[0]))

    def propose(self, pick: Pick, tree: Tree) -> Draft:
        while self._starts:
            start = self._starts.pop(0)
            if not tree.visited(start):
                return Draft(start)
        if sum(o.values is not None for _, o in self._told.values()) + len(self._earlier) < STARTUP:
            return Draft(self._start(pick, tree))
        open_ = self._candidates(pick, tree)
        for proposal, _ in self._told.values():
            self._known_as(pick, proposal.point)
        if not open_:
            raise Exhausted("every point of the space has been proposed")
        self.predictor = Predictor([*self._earlier, *self._observations()])
        foretold = self.predictor.costs(self._seen_as(open_))
        gain = self._improvement(foretold.mean, foretold.sd) * self._chances(open_)
        chosen = self._at_its_best(open_, int(np.argmax(gain / self._spends(open_))), foretold.mean)
        if gain.max() < WORTH and self._measured() and len(self._valued()) > OWN:
            raise Exhausted(f"no point left is expected to save {WORTH:.2%} or more")
        low, high = foretold.interval(TRUST)
        if self.objectives == 1:
            self._expected[_key(open_[chosen])] = float(low[chosen]), float(high[chosen])
        return Draft(open_[chosen])

    def _at_its_best(self, open_: Sequence[Point], chosen: int, mean: Array) -> int:
        """What passes would make for the first time is run as it is foretold to cost least, whatever else
        would be learnt by the way: making it is the dear part.
        """
        made = _passes(open_[chosen])
        if not made or any(_passes(proposal.point) == made for proposal, _ in self._told.values()):
            return chosen
        same = [place for place, point in enumerate(open_) if _passes(point) == made]
        return min(same, key=lambda place: float(mean[place]))

    def _spends(self, open_: Sequence[Point]) -> Array:
        """What trying each point is likely to cost, up to a factor: gain is sought for what it takes.

        Expected improvement per second (J. Snoek et al., NeurIPS 2012).
        """
        spent = [(p.point, o.spent) for p, o in self._told.values() if o.spent]
        if len(spent) < 2:
            return np.ones(len(open_))
        known = self._seen_as([point for point, _ in spent])
        logs = np.log([value for _, value in spent])
        mean, _, _ = additive_model(known, self._seen_as(open_), logs, np.full(len(logs), SPEND_NOISE))
        return np.exp(mean)

    def trust(self) -> dict[str, Any]:
        """How many measured points lay inside the interval told before, at which confidence."""
        held = sum(low <= value <= high for low, high, value in self.foretold)
        off = [abs(value - (low + high) / 2) for low, high, value in self.foretold]
        return {
            "confidence": TRUST,
            "inside": held,
            "predicted": len(self.foretold),
            "median_error": float(np.expm1(np.median(off))) if off else None,
        }

    def _start(self, pick: Pick, tree: Tree) -> Point:
        """What had a first look goes before what is drawn."""
        looked = [(o.values, p.point) for p, o in self._told.values() if not p.whole and o.values]
        return min(looked, key=lambda one: one[0])[1] if looked else tree.walk(pick, self._random.choice)

    def _candidates(self, pick: Pick, tree: Tree) -> list[Point]:
        """Points that are open, or had a first look only."""
        if self._all is None:
            self._all = [self._known_as(pick, p) for p in points(pick, ENUMERATED + 1)]
            made = [(p, self._identities[_key(p)]) for p in self._all]
            names = {name for point in self._all for name in point}
            shared = {n for p in self._seen_as(self._all) for n in p} - names - {REPACKED}
            self._deciding = deciding(made) | shared
        looked = [p.point for p, o in self._told.values() if not p.whole and o.values is not None]
        if len(self._all) <= ENUMERATED:
            return [*looked, *(p for p in self._all if not tree.visited(p))]
        if tree.done:
            return looked
        drawn = [self._known_as(pick, tree.walk(pick, self._random.choice)) for _ in range(DRAWN)]
        near = [self._known_as(pick, p) for p in self._neighbours(pick) if not tree.visited(p)]
        return list({_key(p): p for p in [*looked, *drawn, *near]}.values())

    def _neighbours(self, pick: Pick) -> list[Point]:
        """Points that differ from the best ones in one choice (and what hangs on it)."""
        good = sorted(
            ((o.penalised, p.point) for p, o in self._told.values() if o.penalised is not None),
            key=lambda one: one[0],
        )
        return [
            _changed(pick, point, name, self._random)
            for _, point in good[:NEAR]
            for name in point
            for _ in range(2)
        ]

    def _known_as(self, pick: Pick, point: Point) -> Point:
        key = _key(point)
        if key not in self._identities:
            made = pick(lambda name, _: point[name])
            self._identities[key] = self.identity(made)
            self._described[key] = {**point, **self.traits(made)}
        return point

    def _seen_as(self, points: Sequence[Point]) -> list[Point]:
        """Points with their traits; those outside the space have none."""
        return [self._described.get(_key(point), point) for point in points]

    def _observations(self) -> list[Observation]:
        """What was told, with one value each; several objectives are weighted anew for each proposal."""
        told = [(p, o) for p, o in self._told.values() if o.values is not None]
        weights = self._numbers.dirichlet(np.ones(self.objectives)) if self.objectives > 1 else np.ones(1)
        rows = [o.values for _, o in told if o.values is not None]
        values = scalarised(rows, weights) if rows else np.zeros(0)
        return [
            Observation(seen, float(v), o.looked, o.drop, self._identities.get(_key(p.point)), o.kept)
            for seen, (p, o), v in zip(self._seen_as([p.point for p, _ in told]), told, values, strict=True)
        ]

    def _improvement(self, mean: Array, sd: Array) -> Array:
        """By how much points are expected to fall below what the search would end with now.

        That is the cheapest way that is proved: each that was tried is one with its chance. Where none may
        be, it is the dearest seen.
        """
        own = np.asarray([o.log_cost for o in self.predictor.seen if not o.run])
        known = weights(own, self._likely()) if len(own) else own
        total = np.zeros(len(mean))
        for cost, weight in zip(own, known, strict=True):
            if weight >= NEGLIGIBLE:
                total += weight * expected_improvement(mean, sd, float(cost))
        worst = max(o.log_cost for o in self.predictor.seen)
        return total + max(0.0, 1.0 - float(known.sum())) * expected_improvement(mean, sd, worst)

    def _likely(self) -> Array:
        """Chance of each point that has a value to be proved; none where it broke a constraint."""
        told = [self._told[key] for key in self._valued()]
        found = self._proved([proposal.point for proposal, _ in told])
        return np.asarray([0.0 if o.violations else f for f, (_, o) in zip(found, told, strict=True)])

    def _valued(self) -> list[Key]:
        return [key for key, (_, o) in self._told.items() if o.values is not None]

    def _measured(self) -> list[Key]:
        """Points that were measured whole and are allowed."""
        return [key for key in self._valued() if not (o := self._told[key][1]).looked and not o.violations]

    def _chances(self, open_: Sequence[Point]) -> Array:
        """Probability that a point works, keeps its quality and keeps the other constraints."""
        told = list(self._told.values())
        broken = [o.values is None or o.violations > int(o.kept is False) for _, o in told]
        seen_as = self._seen_as(open_)
        fails = chances(self._seen_as([p.point for p, _ in told]), broken, seen_as)
        return (1 - fails) * self._proved(open_)

    def _proved(self, points: Sequence[Point]) -> Array:
        """Chance of each point to be proved: as its identity was judged, else as it is foretold."""
        identities = [self._identities.get(_key(p)) for p in points]
        found = self.predictor.keeps(self._seen_as(points), identities, self._deciding, self.limit)
        judged = {
            self._identities.get(k): o.chance for k, (_, o) in self._told.items() if o.chance is not None
        }
        for place, identity in enumerate(identities):
            if found[place] > 0 and (chance := judged.get(identity)) is not None:
                found[place] = chance
        return found


def _passes(point: Point) -> dict[str, Any]:
    """The passes that a point has, with their parameters."""
    names = [
        name.removeprefix(APPLIED) for name in point if name.startswith(APPLIED) and point[name] == "yes"
    ]
    return {name: value for name, value in point.items() if name.removeprefix(APPLIED).split(".")[0] in names}


def _beginning(point: Point) -> tuple[Any, Any]:
    return point.get("engine"), point.get("batch")


def _key(point: Point) -> Key:
    return tuple(sorted(point.items(), key=lambda item: item[0]))


def _changed(pick: Pick, point: Point, name: str, dice: random.Random) -> Point:
    """The point with another choice in one dimension; dimensions that this brings are drawn."""
    chosen: dict[str, Any] = {}

    def choose(asked: str, choices: Sequence[Any]) -> Any:
        others = [c for c in choices if c != point.get(asked)]
        if asked == name and others:
            chosen[asked] = dice.choice(others)
        else:
            chosen[asked] = point[asked] if point.get(asked) in choices else dice.choice(list(choices))
        return chosen[asked]

    pick(choose)
    return chosen


def bits_of(weight_format: str) -> int | None:
    """Bits of a weight by the format's name (``q4_0``, ``int8``, ``w8a8``, ``fp32``); None for ``native``."""
    found = re.search(r"(?:int|iq|q|bf|f|fp|w)(\d+)", weight_format)
    return int(found.group(1)) if found else None


def traits(candidate: Candidate) -> dict[str, Any]:
    """What names of formats have in common: bits in all engines, and within one the stem before a dash.

    ``int4-g64-sym`` and ``int4-g32-asym`` are variants of one form, as are ``q4_0`` and ``q4_0-head8``. What
    a pass packed has the bits that this pass gives.
    """
    settings = candidate.settings
    bits, stem = bits_of(settings.weight_format), settings.weight_format.split("-")[0]
    repacked = settings.weight_format not in backend(settings.engine).plain_formats
    for each in map(parse, candidate.passes):
        if each.packs:
            bits = each.values.get("bits", each.values.get("average"))
            stem = f"packed {bits}"
            repacked = True
    return {BITS: bits, STEM: f"{settings.engine} {stem}", REPACKED: repacked}


def promising(starts: Sequence[Candidate]) -> list[Candidate]:
    """One for each engine and model, that with the fewest bits; those with fewer before the others.

    What is first measured prunes all that is dearer; what other formats cost, the model foretells.
    """
    ordered = sorted(starts, key=lambda c: bits_of(c.settings.weight_format) or UNKNOWN_BITS)
    first: dict[tuple[str, object], Candidate] = {}
    for candidate in ordered:
        first.setdefault((candidate.settings.engine, candidate.making), candidate)
    return list(first.values())
