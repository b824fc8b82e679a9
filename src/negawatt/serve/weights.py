"""`Weights`: by what measure a step of the engine is shared among the sequences in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.engine.batching import Part
from negawatt.profiling import CostModel


@dataclass(frozen=True, slots=True)
class Weights:
    """Modelled cost of what a sequence has in a step, in CPU seconds or in any unit common to all.

    What a step costs whoever is in it (reading the weights) is shared equally; a prompt is weighed by its
    tokens and by the pairs of tokens that attend to each other; a token being written by itself and by the
    context it reads.

    Attributes:
        call: of a step.
        prefill_token, prefill_pair: of a token of a prompt, and of a pair of tokens of it.
        decode_token, decode_context: of a token fed while writing, and of each token it looks back at.
        source: where they come from.
    """

    call: float
    prefill_token: float
    prefill_pair: float
    decode_token: float
    decode_context: float
    source: str

    @classmethod
    def fitted(cls, model: CostModel) -> Weights:
        """Those of a fitted cost model."""
        return cls(
            max(model.decode_call_s, model.prefill_call_s),
            model.prefill_token_s,
            model.prefill_pair_s,
            model.decode_token_s,
            model.decode_context_s,
            "fitted to steps of this engine",
        )

    @classmethod
    def declared(cls, data: Any) -> Weights:
        """From the coefficients of a profile, as `CostModel.to_json` writes them.

        Raises:
            KeyError, TypeError, ValueError: they are not all there.
        """
        told = {name: float(value) for name, value in data["coefficients"].items()}
        return cls(
            max(told["decode_call_s"], told["prefill_call_s"]), told["prefill_token_s"],
            told["prefill_pair_s"], told["decode_token_s"], told["decode_context_s"],
            "of the artifact's profile",
        )  # fmt: skip

    def shares(self, parts: Sequence[Part]) -> list[float]:
        """The share of each part in its step; they add up to 1 (of no parts, there are none)."""
        if not parts:
            return []
        equal = self.call / len(parts)
        costs = [equal + self._own(part) for part in parts]
        whole = sum(costs)
        return [cost / whole for cost in costs] if whole > 0 else [1 / len(parts)] * len(parts)

    def _own(self, part: Part) -> float:
        if part.phase == "prefill":
            pairs = part.fed * (part.context + part.fed / 2)
            return self.prefill_token * part.fed + self.prefill_pair * pairs
        return self.decode_token * part.fed + self.decode_context * part.context


PLAIN = Weights(1.0, 0.1, 1e-5, 0.1, 1e-4, "a rule of thumb: no steps of this engine have been fitted yet")
"""Until there is a fit: reading the weights once costs as much as ten tokens."""
