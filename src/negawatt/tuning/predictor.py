"""`Predictor`: what a point will cost and whether its quality will do, from trials so far, with intervals.

Cost: the logarithm is a sum of effects of the choices and of pairs of choices, each drawn from a normal
distribution whose spread is learnt (ridge regression, seen as a Gaussian process with the kernel `additive`),
averaged over how large those spreads may be. Trials of earlier searches carry an effect of their run, which
they share: the machine's and the traffic's drift between then and now. Quality: points of one identity (the
same arithmetic) have one drop; for identities not judged yet the same additive model says how likely they
keep the limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from negawatt.tuning.process import Alike, Array, Point, normal_cdf
from negawatt.workload.intervals import student_quantile

WHOLE_NOISE, LOOK_NOISE = 0.04, 0.12
"""Standard deviations of the logarithm of a cost: measured on whole answers, or at a first look."""
RUN_SPREAD = 0.25
"""Of the effect that all trials of one earlier run share."""
MAINS, PAIRS, NOISES = (0.03, 0.15, 0.6), (0.0003, 0.004, 0.05), (0.5, 1.0, 2.0)
"""What the variances of main effects and of pairs' effects may be, and factors of the noise."""
DROP_NOISE = 0.012
"""Standard deviation of a drop in quality, seen on the few items of a search."""
RUN = "\0run"
"""Dimension that holds the run of a trial; no space has one of that name."""


@dataclass(frozen=True)
class Observation:
    """A finished trial as the predictor sees it.

    Attributes:
        point: dimension → value.
        log_cost: natural logarithm of the cost.
        looked: it comes from a first look only.
        drop: of quality, None where not judged.
        identity: of the arithmetic.
        kept: whether the quality was good enough; None where not judged.
        run: the run it was seen in; "" for the present one.
    """

    point: Point
    log_cost: float
    looked: bool = False
    drop: float | None = None
    identity: Hashable = None
    kept: bool | None = None
    run: str = ""


@dataclass(frozen=True)
class Foretold:
    """Predictions for some points: shape ``(points,)`` each.

    Attributes:
        mean, sd: of the logarithm of the true cost.
        degrees: of freedom of the Student distribution that intervals use.
    """

    mean: Array
    sd: Array
    degrees: int

    def interval(self, confidence: float, noise: float = 0.0) -> tuple[Array, Array]:
        """Ends of the interval of the logarithm; with `noise`, of a measurement of it."""
        width = student_quantile((1 + confidence) / 2, self.degrees) * np.sqrt(self.sd**2 + noise**2)
        return self.mean - width, self.mean + width


class Predictor:
    """Learns from observations; asks nothing of an engine.

    Args:
        earlier: observations of earlier runs on the same machine, of the same model.
    """

    def __init__(self, earlier: Sequence[Observation] = ()) -> None:
        self.seen: list[Observation] = list(earlier)

    def observe(self, observation: Observation) -> None:
        """Take in a trial; a whole measurement replaces the first look at the same point."""
        self.seen = [o for o in self.seen if not (o.run == observation.run and o.point == observation.point)]
        self.seen.append(observation)

    def costs(self, points: Sequence[Point]) -> Foretold:
        """Predictions for points; with fewer than two observations they are as wide as the prior."""
        if len(self.seen) < 2:
            middle = self.seen[0].log_cost if self.seen else 0.0
            return Foretold(np.full(len(points), middle), np.full(len(points), 1.0), 1)
        known = [{**o.point, RUN: o.run} for o in self.seen]
        asked = [{**p, RUN: ""} for p in points]
        noise = np.asarray([LOOK_NOISE if o.looked else WHOLE_NOISE for o in self.seen])
        values = np.asarray([o.log_cost for o in self.seen])
        mean, sd = _averaged(known, asked, values, noise, MAINS, PAIRS, NOISES)
        return Foretold(mean, sd, max(2, len(self.seen) - 1))

    def drops(
        self, points: Sequence[Point], identities: Sequence[Hashable], dimensions: set[str]
    ) -> Foretold:
        """Predictions of the drop in quality.

        Args:
            points, identities: what is asked about.
            dimensions: those that decide an identity.
        """
        judged = {o.identity: o for o in self.seen if o.drop is not None}
        if len(judged) < 2:
            return Foretold(np.zeros(len(points)), np.full(len(points), 0.02), 2)
        known = [_only(o.point, dimensions) for o in judged.values()]
        asked = [_only(p, dimensions) for p in points]
        values = np.asarray([float(o.drop or 0.0) for o in judged.values()])
        scale = max(DROP_NOISE, float(np.std(values)))
        noise = np.full(len(known), DROP_NOISE / scale)
        mean, sd = _averaged(known, asked, values / scale, noise, (0.3, 1.0), (0.02, 0.3), (1.0,))
        mean, sd = mean * scale, sd * scale
        for i, identity in enumerate(identities):
            if identity in judged:
                mean[i], sd[i] = float(judged[identity].drop or 0.0), 1e-6
        return Foretold(mean, sd, max(2, len(judged) - 1))

    def keeps(
        self,
        points: Sequence[Point],
        identities: Sequence[Hashable],
        dimensions: set[str],
        limit: float | None,
    ) -> Array:
        """Probability that a point keeps the limit on quality; 1 where there is none and none failed it."""
        verdicts = {o.identity: o.kept for o in self.seen if o.kept is not None and not o.run}
        chance = np.ones(len(points))
        if limit is not None:
            foretold = self.drops(points, identities, dimensions)
            chance = normal_cdf((limit - foretold.mean) / foretold.sd)
        for i, identity in enumerate(identities):
            if identity in verdicts:
                chance[i] = float(bool(verdicts[identity]))
        return chance


def chances(known: Sequence[Point], happened: Sequence[bool], asked: Sequence[Point]) -> Array:
    """Probability that something happens at a point, from where it did and did not: an additive model of it.

    Without any case of it, 0.
    """
    if not any(happened):
        return np.zeros(len(asked))
    values = np.asarray(happened, dtype=np.float64)
    noise = np.full(len(values), 0.25)
    mean, sd = _averaged(known, asked, values, noise, (0.05, 0.3), (0.003, 0.05), (1.0,))
    return normal_cdf((mean - 0.5) / np.hypot(sd, 0.25))


def _averaged(
    known: Sequence[Point],
    asked: Sequence[Point],
    values: Array,
    noise: Array,
    mains: Sequence[float],
    pairs: Sequence[float],
    noises: Sequence[float],
) -> tuple[Array, Array]:
    """Mean and standard deviation of the additive model, averaged over its parameters by their evidence."""
    alike = Alike([*known, *asked])
    within, across = _parts(alike(known, known), alike.names), _parts(alike(asked, known), alike.names)
    alone = _parts(alike(asked[:1], asked[:1]), alike.names) if asked else within
    found: list[tuple[float, Array, Array]] = []
    for main, pair, factor in itertools.product(mains, pairs, noises):
        weights = np.asarray([main, pair, RUN_SPREAD**2])
        covariance = np.tensordot(weights, within, axes=1) + np.diag((factor * noise) ** 2 + 1e-8)
        inverse = np.linalg.inv(covariance)
        level = float(inverse.sum(axis=0) @ values / inverse.sum())
        rest = inverse @ (values - level)
        evidence = -0.5 * float((values - level) @ rest) - 0.5 * float(np.linalg.slogdet(covariance)[1])
        reach = np.tensordot(weights, across, axes=1)
        # What is not known of the level itself adds to the variance (universal kriging).
        lack = 1.0 - reach @ inverse.sum(axis=0)
        variance = (
            float(np.tensordot(weights, alone, axes=1)[0, 0])
            - np.einsum("ij,jk,ik->i", reach, inverse, reach)
            + lack**2 / inverse.sum()
        )
        found.append((evidence, level + reach @ rest, np.maximum(variance, 1e-10)))
    top = max(evidence for evidence, _, _ in found)
    shares = np.asarray([math.exp(evidence - top) for evidence, _, _ in found])
    shares /= shares.sum()
    mean = np.tensordot(shares, np.asarray([m for _, m, _ in found]), axes=1)
    second = np.tensordot(shares, np.asarray([v + m**2 for _, m, v in found]), axes=1)
    return mean, np.sqrt(np.maximum(second - mean**2, 1e-10))


def _parts(alike: Array, names: Sequence[str]) -> Array:
    """Sums over main effects, over pairs' effects, and the run's; shape ``(3, a, b)``."""
    of_run = np.asarray([name == RUN for name in names])
    own = alike[~of_run]
    total = own.sum(axis=0)
    run = alike[of_run].sum(axis=0) if of_run.any() else np.zeros_like(total)
    return np.stack([total, (total**2 - (own**2).sum(axis=0)) / 2, run])


def _only(point: Point, dimensions: set[str]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name in dimensions}


def deciding(
    made: Sequence[tuple[Point, Hashable]],
) -> set[str]:
    """The dimensions that an identity hangs on: alone changed, they change it in some point.

    Args:
        made: points with their identities.
    """
    found: set[str] = set()
    for name in {name for point, _ in made for name in point}:
        groups: dict[tuple[Any, ...], set[Hashable]] = {}
        for point, identity in made:
            rest = tuple(sorted((k, str(v)) for k, v in point.items() if k != name))
            groups.setdefault(rest, set()).add(identity)
        if any(len(identities) > 1 for identities in groups.values()):
            found.add(name)
    return found or {name for point, _ in made for name in point}
