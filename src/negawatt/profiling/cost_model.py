"""`CostModel`: what a request costs, as a function of its input, its output and the batch.

With n_in prompt tokens, n_out generated tokens and B sequences decoded together, a request costs

    p0/B + p1·n_in + p2·n_in²/2  +  k·(d0/B + d1·f) + d2·k·(n_in + n_out/2),   k = (n_out − 1)/a

CPU seconds: a prefill term (fixed per engine call, per token, per pair of tokens) and a decode term
(fixed per engine call and shared by the batch: the weights are read once for all; per token fed; per
token of context read). Without speculation a = f = 1; with it, an engine call feeds f tokens of a
sequence and yields a of them. Times joules per CPU second it is an energy. The form is the one that
published fits of request energy use, with the fixed cost of a step separated so that one model
serves every batch size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.energy import Energy
from negawatt.engine import Step
from negawatt.errors import NegawattError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """A measured or predicted cost in CPU seconds of a group of requests run together."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    cpu_s: float


@dataclass(frozen=True)
class CostModel:
    """See the module's text for the formula.

    Attributes:
        prefill_call_s, prefill_token_s, prefill_pair_s: p0, p1, p2 in CPU seconds.
        decode_call_s, decode_token_s, decode_context_s: d0, d1, d2 in CPU seconds.
        fed_per_call, yielded_per_call: f and a.
        overhead: CPU seconds spent per CPU second inside the engine (sampling, bookkeeping); ≥ 1.
        batch: B it was fitted at.
        energy_per_cpu_s: joules for one CPU second, with its interval and provenance.
        errors: relative errors |predicted/measured − 1| on requests held back from the fit.
    """

    prefill_call_s: float
    prefill_token_s: float
    prefill_pair_s: float
    decode_call_s: float
    decode_token_s: float
    decode_context_s: float
    fed_per_call: float
    yielded_per_call: float
    overhead: float
    batch: int
    energy_per_cpu_s: Energy
    errors: tuple[float, ...] = ()

    # -- fitting ---------------------------------------------------------------------------------

    @classmethod
    def fit(cls, steps: Sequence[Step], *, batch: int, cpu_s: float, energy_per_cpu_s: Energy) -> CostModel:
        """Fit to the steps of one or more generations.

        Args:
            steps: engine calls with their cost.
            batch: sequences that were decoded together.
            cpu_s: CPU seconds of the whole generations, at least what the steps add up to.
            energy_per_cpu_s: joules for one CPU second.

        Where nothing was decoded (questions are scored, texts are labelled) the decode terms are 0.

        Raises:
            NegawattError: there is no prefill step.
        """
        prefill = [s for s in steps if s.phase == "prefill"]
        decode = [s for s in steps if s.phase == "decode"]
        if not prefill:
            raise NegawattError("a cost model needs at least one prefill step")
        p = _fit_non_negative(
            np.array([[1.0, s.tokens, s.tokens**2 / (2 * s.sequences)] for s in prefill]),
            np.array([s.cpu_s for s in prefill]),
        )
        d, fed, yielded = (0.0, 0.0, 0.0), 1.0, 1.0
        if decode:
            d = _fit_non_negative(
                np.array([[1.0, s.tokens, s.context] for s in decode]), np.array([s.cpu_s for s in decode])
            )
            sequences = sum(s.sequences for s in decode)
            fed = sum(s.tokens for s in decode) / sequences
            yielded = max(1e-9, sum(s.produced for s in decode) / sequences)
        return cls(
            *p,
            *d,
            fed_per_call=fed,
            yielded_per_call=yielded,
            overhead=max(1.0, cpu_s / sum(s.cpu_s for s in steps)),
            batch=batch,
            energy_per_cpu_s=energy_per_cpu_s,
        )

    def tested_on(self, held_back: Sequence[Cost]) -> CostModel:
        """This model with its errors on groups of requests that the fit did not see."""
        errors = tuple(abs(self.group_cpu_s(c.inputs, c.outputs) / c.cpu_s - 1) for c in held_back)
        return replace(self, errors=errors)

    # -- predicting ------------------------------------------------------------------------------

    def request_cpu_s(self, n_in: float, n_out: float, batch: int | None = None) -> float:
        """CPU seconds of one request of a full batch of such requests."""
        b = batch or self.batch
        calls = max(0.0, n_out - 1) / self.yielded_per_call
        prefill = self.prefill_call_s / b + self.prefill_token_s * n_in + self.prefill_pair_s * n_in**2 / 2
        decode = calls * (self.decode_call_s / b + self.decode_token_s * self.fed_per_call)
        context = self.decode_context_s * calls * (n_in + n_out / 2)
        return (prefill + decode + context) * self.overhead

    def group_cpu_s(self, inputs: Sequence[int], outputs: Sequence[int]) -> float:
        """CPU seconds of requests handed over together.

        Where they fit into one batch, the longest keeps the engine calling to its end.
        """
        if len(inputs) > self.batch:  # slots are filled again: the batch stays full to the end
            return sum(self.request_cpu_s(i, o) for i, o in zip(inputs, outputs, strict=True))
        shared = self.prefill_call_s + max(0, max(outputs) - 1) / self.yielded_per_call * self.decode_call_s
        alone = replace(self, prefill_call_s=0.0, decode_call_s=0.0)
        own = sum(alone.request_cpu_s(i, o) for i, o in zip(inputs, outputs, strict=True))
        return shared * self.overhead + own

    def request_energy(self, n_in: float, n_out: float, batch: int | None = None) -> Energy:
        """Energy of one request of a full batch of such requests."""
        return self.energy_per_cpu_s.scaled(self.request_cpu_s(n_in, n_out, batch))

    @property
    def median_error(self) -> float | None:
        """Median relative error on held-back requests, or None where none were held back."""
        return float(np.median(self.errors)) if self.errors else None

    def to_json(self) -> dict[str, Any]:
        names = (
            "prefill_call_s", "prefill_token_s", "prefill_pair_s", "decode_call_s", "decode_token_s",
            "decode_context_s", "fed_per_call", "yielded_per_call", "overhead",
        )  # fmt: skip
        return {
            "coefficients": {name: getattr(self, name) for name in names},
            "batch": self.batch,
            "energy_per_cpu_s": self.energy_per_cpu_s.to_json(),
            "median_error": self.median_error,
            "n_held_back": len(self.errors),
            "text": self.text,
        }

    @property
    def text(self) -> str:
        """The formula with its numbers, in CPU milliseconds, for one request."""
        ms = 1000 * self.overhead
        per_token = (self.decode_call_s / self.batch + self.decode_token_s * self.fed_per_call) * ms
        context = self.decode_context_s / self.yielded_per_call * ms
        return (
            f"{self.prefill_call_s / self.batch * ms:.3g} + {self.prefill_token_s * ms:.3g}·in "
            f"+ {self.prefill_pair_s / 2 * ms:.3g}·in² + {per_token / self.yielded_per_call:.3g}·out "
            f"+ {context:.3g}·out·(in + out/2) CPU-ms a request at batch {self.batch}"
        )


def _fit_non_negative(features: Array, costs: Array) -> tuple[float, float, float]:
    """Least squares of relative errors with no negative coefficient, robust to a few disturbed steps.

    Three columns are few enough to try every subset and keep the best feasible one, which is the
    exact solution. Steps whose residual is far out (a neighbour took the core) are weighted down
    (Huber's weights at 1.5 robust standard deviations).
    """
    scaled = features / costs[:, None]
    weights = np.ones(len(costs))
    best = np.zeros(3)
    for _ in range(5):
        best = _best_subset(scaled, weights)
        residuals = np.abs(scaled @ best - 1)
        limit = 1.5 * max(1.4826 * float(np.median(residuals)), 1e-6)
        weights = np.minimum(1.0, limit / np.maximum(residuals, 1e-12))
    return float(best[0]), float(best[1]), float(best[2])


def _best_subset(scaled: Array, weights: Array) -> Array:
    root = np.sqrt(weights)
    target = root
    best, best_error = np.zeros(3), np.inf
    for size in (1, 2, 3):
        for columns in itertools.combinations(range(3), size):
            part = scaled[:, columns] * root[:, None]
            norms = np.linalg.norm(part, axis=0)
            if np.any(norms == 0):
                continue
            solution, _, rank, _ = np.linalg.lstsq(part / norms, target, rcond=1e-6)
            if rank < size or np.any(solution < 0):
                continue
            error = float(np.sum((part / norms @ solution - target) ** 2))
            if error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(3), error
                best[list(columns)] = solution / norms
    return best
