"""`Process`: a Gaussian process over points of a categorical, conditional space; plain numpy.

Points are compared dimension by dimension: equal choices, unequal ones, or numbers some way apart. A
dimension that one point has and the other has not (its engine has no such thing) is unequal; one that both
lack is equal. The kernel `product` falls with every dimension that differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Point = Mapping[str, Any]
Kernel = Callable[[Array, Array], Array]
"""From alikeness, shape ``(dimensions, a, b)``, and parameters to covariance, shape ``(a, b)``."""

JITTER = 1e-8
ABSENT = object()


class Alike:
    """How alike points are in each dimension: 1 where they agree, 0 where they differ.

    Numbers are alike by the distance of their ranks among all numbers seen in that dimension.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.names = sorted({name for point in points for name in point})
        self._ranks: dict[str, dict[Any, float]] = {}
        for name in self.names:
            found = {p[name] for p in points if name in p}
            if len(found) > 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
                order = sorted(found)
                self._ranks[name] = {v: i / (len(order) - 1) for i, v in enumerate(order)}

    def __call__(self, a: Sequence[Point], b: Sequence[Point]) -> Array:
        """Shape ``(dimensions, len(a), len(b))``."""
        out = np.empty((len(self.names), len(a), len(b)))
        for d, name in enumerate(self.names):
            if name in self._ranks:
                x, y = (self._numbers(name, points) for points in (a, b))
                near = 1.0 - np.abs(x[:, None] - y[None, :])
                both_absent = np.isnan(x)[:, None] & np.isnan(y)[None, :]
                out[d] = np.where(np.isnan(near), both_absent, near)
            else:
                index: dict[Any, int] = {}
                x, y = (
                    np.asarray([index.setdefault(p.get(name, ABSENT), len(index)) for p in points])
                    for points in (a, b)
                )
                out[d] = x[:, None] == y[None, :]
        return out

    def _numbers(self, name: str, points: Sequence[Point]) -> Array:
        ranks = self._ranks[name]
        return np.asarray([ranks.get(p[name], 0.5) if name in p else math.nan for p in points])


def product(alike: Array, parameters: Array) -> Array:
    """Variance × Π exp(−weight · unlikeness); parameters: the variance, then a weight for each dimension."""
    return np.asarray(parameters[0] * np.exp(-np.tensordot(parameters[1:], 1.0 - alike, axes=1)))


@dataclass(frozen=True)
class Fitted:
    """A process given data.

    Attributes:
        points: where values were seen.
        mean: what is expected before any data.
        log_evidence: how well the parameters explain the data; higher is better.
    """

    alike: Alike
    kernel: Kernel
    parameters: Array
    points: Sequence[Point]
    mean: float
    inverse: Array
    weights: Array
    log_evidence: float

    def predict(self, points: Sequence[Point]) -> tuple[Array, Array]:
        """Mean and standard deviation of the value itself, without the noise of seeing it."""
        across = self.kernel(self.alike(points, self.points), self.parameters)
        prior = self.kernel(self.alike(points[:1], points[:1]), self.parameters)[0, 0]  # the same everywhere
        variance = prior - np.einsum("ij,jk,ik->i", across, self.inverse, across)
        return self.mean + across @ self.weights, np.sqrt(np.maximum(variance, 1e-12))


def fit(
    points: Sequence[Point],
    values: Sequence[float],
    noise: Sequence[float],
    kernel: Kernel,
    candidates: Sequence[Array],
    *,
    others: Sequence[Point] = (),
) -> Fitted:
    """The candidate parameters under which the data are likeliest.

    Args:
        points, values: what was seen, at least once.
        noise: standard deviation of each value.
        candidates: parameters of the kernel to choose from.
        others: points that will be asked about; they make the dimensions known.
    """
    y = np.asarray(values, dtype=np.float64)
    alike = Alike([*points, *others])
    between = alike(points, points)
    noise2 = np.square(np.asarray(noise, dtype=np.float64))
    best: Fitted | None = None
    for parameters in candidates:
        covariance = kernel(between, parameters) + np.diag(noise2 + JITTER)
        factor = np.linalg.cholesky(covariance)
        inverse: Array = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
        mean = float(inverse.sum(axis=0) @ y / inverse.sum())  # generalised least squares
        rest = y - mean
        weights: Array = np.asarray(inverse @ rest, dtype=np.float64)
        evidence = -0.5 * float(rest @ weights) - float(np.log(np.diag(factor)).sum())
        if best is None or evidence > best.log_evidence:
            best = Fitted(alike, kernel, parameters, list(points), mean, inverse, weights, evidence)
    assert best is not None
    return best


def expected_improvement(mean: Array, sd: Array, best: float) -> Array:
    """By how much points are expected to fall below `best` (J. Mockus, 1974)."""
    z = (best - mean) / sd
    return (best - mean) * normal_cdf(z) + sd * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def normal_cdf(z: Array) -> Array:
    """The standard normal's distribution function."""
    return np.asarray([0.5 * math.erfc(-v / math.sqrt(2)) for v in np.ravel(z)]).reshape(np.shape(z))
