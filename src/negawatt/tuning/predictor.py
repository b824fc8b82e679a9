"""`Predictor`: what a point will cost and whether its quality will do, from trials so far, with intervals.

Cost: the logarithm is a sum of effects of the choices and of pairs of choices, each drawn from a normal
distribution whose spread is learnt (ridge regression, seen as a Gaussian process). Trials of earlier searches
carry an effect of their run, which they share: the drift of machine and traffic between then and now.
Quality: points of one identity (the same arithmetic) have one drop; for identities not judged yet the same
kind of model says how likely they keep the limit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from negawatt.tuning.process import Alike, Array, Point, normal_cdf
from negawatt.workload.intervals import student_quantile

BITS, STEM, REPACKED = "\0bits", "\0stem", "\0repacked"
"""Names of traits: the bits of a weight, the form whose variants formats are, and whether an engine lays
weights out anew for its kernels."""
WHOLE_NOISE, LOOK_NOISE = 0.04, 0.10
"""Standard deviations of the logarithm of a cost: measured on whole answers, or at a first look."""
RUN_SPREAD = 0.25
"""Of the effect that all trials of one earlier run share."""
VARIANCES = {
    "engine": 0.3, "batch": 0.3, "model": 0.3, BITS: 0.2, REPACKED: 0.05, STEM: 0.03,
    "weight_format": 0.006, "threads": 0.03, "cores": 0.01, "speculation": 0.004, "kv_cache": 0.003,
    "flash_attention": 0.003,
}  # fmt: skip
"""How much the logarithm of a cost varies with a dimension, before anything is seen; by the last part of its
name, which dimensions of different engines share. What is seen corrects it."""
OTHER_VARIANCE, PAIR_VARIANCE = 0.03, 0.003
"""The same for other dimensions, and for each pair of dimensions that all points have."""
TRUST_IN_VARIANCES = 1.5
"""Standard deviation of the logarithm of a variance around what it is taken for."""
STEPS = (0.1, 0.33, 3.0, 10.0)
"""Factors by which a variance, or the noise, is tried to be changed."""
SWEEPS = 2
FITTED = 60
"""Trials at most on which the variances are found; the effects themselves are found on all."""
DROP_NOISE = 0.012
"""Standard deviation of a drop in quality, seen on the few items of a search."""
RUN, PAIR, NOISE = "\0run", "\0pair", "\0noise"
"""Names, as no space has them, of the dimension that holds the run of a trial, of the effect of pairs, and of
the noise."""
APPLIED = "pass "
"""What names of dimensions begin with that say whether a pass is applied."""
EVEN = {"engine": 0.2, "model": 0.5, "weight_format": 0.3, STEM: 0.3, BITS: 0.5, PAIR: 0.02}
OF_PASSES = 0.5
"""Variances of effects on quality, in units of its own spread; the last, of whether a pass is applied."""
FEW_BITS, WHOLE_BITS = 4, 16
"""Of the coarsest weights that are searched unasked, and of weights as models are published."""
DOUBLED, NOT_REPACKED = 0.25, 0.5
"""What the logarithm of a cost is taken to grow with twice the bits of a weight, and where an engine cannot
lay weights out anew for its kernels, before anything is seen."""
ROUNDING = ("weight_format", STEM, BITS, PAIR)
"""Effects on quality that come of rounding weights: they get smaller with their bits."""


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
        noise: standard deviation of a whole measurement around it, as it was found to be.
    """

    mean: Array
    sd: Array
    degrees: int
    noise: float = WHOLE_NOISE

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Ends of the interval in which the logarithm of a measured cost is expected."""
        width = student_quantile((1 + confidence) / 2, self.degrees) * np.sqrt(self.sd**2 + self.noise**2)
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
        mean, sd, factor = additive_model(known, asked, values - _beforehand(known), noise)
        return Foretold(mean + _beforehand(asked), sd, max(2, len(self.seen) - 1), factor * WHOLE_NOISE)

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
        scale = max(DROP_NOISE, float(np.sqrt(np.mean(values**2))))
        noise = np.full(len(known), DROP_NOISE / scale)
        passes = {name: OF_PASSES for name in dimensions if name.startswith(APPLIED)}
        # untouched weights answer much the same in every engine
        variances = {**EVEN, "engine": 0.05, "kv_cache": 0.05, **passes}
        mean, sd, _ = additive_model(
            known, asked, values / scale, noise, variances,
            level=0.0, coarse=(_coarse([o.point for o in judged.values()]), _coarse(points)),
        )  # fmt: skip
        mean, sd = mean * scale, sd * scale
        for i, identity in enumerate(identities):
            if identity in judged:
                mean[i], sd[i] = float(judged[identity].drop or 0.0), 1e-6
        return Foretold(mean, sd, max(2, len(judged) - 1))

    def verdicts(self) -> dict[Hashable, bool]:
        """Whether the quality of an identity was good enough, as the present search judged it."""
        return {o.identity: o.kept for o in self.seen if o.kept is not None and not o.run}

    def keeps(
        self,
        points: Sequence[Point],
        identities: Sequence[Hashable],
        dimensions: set[str],
        limit: float | None,
    ) -> Array:
        """Probability that a point keeps the limit on quality; 1 where there is none and none failed it."""
        verdicts = self.verdicts()
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
    mean, sd, _ = additive_model(known, asked, values, noise, {name: v / 4 for name, v in EVEN.items()})
    return normal_cdf((mean - 0.5) / np.hypot(sd, 0.25))


def additive_model(
    known: Sequence[Point],
    asked: Sequence[Point],
    values: Array,
    noise: Array,
    variances: Mapping[str, float] = VARIANCES,
    *,
    level: float | None = None,
    coarse: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, float]:
    """Mean and standard deviation of a sum of effects at some points, and the factor that the noise has.

    The variances are those under which the data and the variances themselves are likeliest, found factor by
    factor (type II maximum likelihood with a prior; D. J. C. MacKay, Neural Computation 4, 1992).

    Args:
        known, values, noise: points, what was seen there, and the standard deviation of seeing it.
        variances: of effects by the last part of their dimension's name, before anything is seen.
        level: of the sum where no effect is known; None where that is to be found too.
        coarse: by what the effects of `ROUNDING` are to be multiplied, of the known and of the asked.
    """
    alike = Alike([*known, *asked])
    parts = _Parts(alike.names)
    here, there = map(parts.factors, coarse or (np.ones(len(known)), np.ones(len(asked))))
    within = parts.of(alike(known, known)) * here[:, :, None] * here[:, None, :]
    names = [*parts.names, NOISE]
    prior = np.asarray([variances.get(n, _default(n)) for n in parts.names] + [1.0])
    scale = prior.copy()
    best, fitted = -math.inf, None
    few = np.linspace(0, len(known) - 1, min(len(known), FITTED)).astype(int)
    part, seen, noises = within[:, few][:, :, few], values[few], noise[few]
    for _ in range(SWEEPS):
        before = best
        for place in range(len(names)):
            for factor in (1.0, *STEPS):
                tried = scale.copy()
                tried[place] *= factor
                fit = _Fit(part, tried, seen, noises, level)
                score = fit.evidence - float(np.sum((np.log(tried / prior) / TRUST_IN_VARIANCES) ** 2)) / 2
                if score > best + 1e-9:
                    best, fitted, chosen = score, fit, tried
            scale = chosen
        if best - before < 0.05:
            break
    own = parts.of(alike(asked[:1], asked[:1]))[:, 0] * there**2  # every point is like itself
    if fitted is None or len(few) < len(known):
        fitted = _Fit(within, scale, values, noise, level)
    across = parts.of(alike(asked, known)) * there[:, :, None] * here[:, None, :]
    return *fitted.predict(across, scale[:-1] @ own), math.sqrt(float(scale[-1]))


class _Fit:
    """The model under given variances.

    Args:
        within: alikeness of the points seen, by effect: shape ``(effects, n, n)``.
        scale: variance of each effect, then the factor of the noise's variance.
        level: of the sum without effects; found too where it is None.
    """

    def __init__(self, within: Array, scale: Array, values: Array, noise: Array, level: float | None) -> None:
        covariance = np.tensordot(scale[:-1], within, axes=1) + np.diag(scale[-1] * noise**2 + 1e-8)
        self.scale = scale
        self.inverse = np.linalg.inv(covariance)
        self.found = level is None
        self.level = float(self.inverse.sum(axis=0) @ values / self.inverse.sum()) if level is None else level
        self.rest = self.inverse @ (values - self.level)
        self.evidence = -0.5 * float((values - self.level) @ self.rest) - 0.5 * float(
            np.linalg.slogdet(covariance)[1]
        )

    def predict(self, across: Array, alone: Array) -> tuple[Array, Array]:
        reach = np.tensordot(self.scale[:-1], across, axes=1)
        variance = alone - np.einsum("ij,jk,ik->i", reach, self.inverse, reach)
        if self.found:  # what is not known of the level itself adds to the variance (universal kriging)
            variance += (1.0 - reach @ self.inverse.sum(axis=0)) ** 2 / self.inverse.sum()
        return self.level + reach @ self.rest, np.sqrt(np.maximum(variance, 1e-10))


class _Parts:
    """The effects that a sum has: one for each kind of dimension, one for pairs, one for the run."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self._kinds = [RUN if d == RUN else d.rsplit(".", 1)[-1] for d in dimensions]
        self._common = [i for i, d in enumerate(dimensions) if "." not in d and d != RUN]
        self.names = [*dict.fromkeys(self._kinds), PAIR]

    def of(self, alike: Array) -> Array:
        """Shape ``(effects, a, b)`` from alikeness by dimension, shape ``(dimensions, a, b)``."""
        own = [
            sum(alike[i] for i, kind in enumerate(self._kinds) if kind == name) for name in self.names[:-1]
        ]
        common = alike[self._common]
        total = common.sum(axis=0) if self._common else np.zeros(alike.shape[1:])
        return np.stack([*own, (total**2 - (common**2).sum(axis=0)) / 2])

    def factors(self, coarse: Array) -> Array:
        """Shape ``(effects, points)``: those of `ROUNDING` are multiplied by how coarse a point is."""
        return np.where([[name in ROUNDING] for name in self.names], coarse, 1.0)


def _beforehand(points: Sequence[Point]) -> Array:
    """What is taken for the logarithms of costs, but for a constant, before anything is seen."""
    bits = np.log2(np.asarray([_bits(p) for p in points]) / FEW_BITS)
    repacked = np.asarray([bool(p.get(REPACKED, True)) for p in points])
    return np.asarray(DOUBLED * bits + NOT_REPACKED * ~repacked)


def _coarse(points: Sequence[Point]) -> Array:
    """How far weights are from what they were: 1 with `FEW_BITS`, half of it for each two bits more.

    Rounding halves with each bit; answers are changed by its root, as SmolLM2 in 4 and 8 bits shows.
    """
    return np.asarray([2.0 ** -((_bits(p) - FEW_BITS) / 2) for p in points])


def _bits(point: Point) -> float:
    """Of a weight; points that say nothing of it are taken for equals, and weights as they are for whole."""
    return float(point.get(BITS, FEW_BITS) or WHOLE_BITS)


def _default(name: str) -> float:
    return {RUN: RUN_SPREAD**2, PAIR: PAIR_VARIANCE}.get(name, OTHER_VARIANCE)


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
