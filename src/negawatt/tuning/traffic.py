"""`Traffic`: the same requests for candidates that may cut text into other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.engine import Request
from negawatt.profiling.quality import prompt_tokens
from negawatt.profiling.window import requests_of
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.workshop import Workshop
from negawatt.workload import TrafficItem


class Traffic:
    """Requests of a workload in every candidate's own tokens.

    A model with another tokenizer, or with fewer tokens, needs another number of tokens for the same text.
    So that costs are of the same text, its answers are lengthened in proportion, and what a token of it costs
    is multiplied by `per_token`: costs are told for a token as the baseline cuts it.

    Args:
        workshop: gives the candidates' tokenizers.
        items: of the workload.
        max_context: tokens that a sequence may hold.
    """

    def __init__(self, workshop: Workshop, items: Sequence[TrafficItem], max_context: int) -> None:
        self._workshop, self._items, self._max_context = workshop, items, max_context
        own = requests_of(workshop.base.tokenizer, items, max_context)
        self._requests: dict[tuple[str, tuple[str, ...]], tuple[list[Request], float]] = {
            ("", ()): (own, 1.0)
        }

    def requests(self, candidate: Candidate) -> list[Request]:
        """Requests of exactly the stated lengths: no token ends the answer early.

        Raises:
            EngineError: the candidate's weights cannot be made.
            WorkloadError: a request does not fit.
        """
        return self._of(candidate)[0]

    def per_token(self, candidate: Candidate) -> float:
        """Tokens of the candidate for a token of the baseline's, over the prompts."""
        return self._of(candidate)[1]

    def _of(self, candidate: Candidate) -> tuple[list[Request], float]:
        if candidate.making not in self._requests:
            tokenizer = self._workshop.artifact(candidate).tokenizer
            before = sum(len(r.tokens) for r in self._requests["", ()][0])
            after = sum(len(prompt_tokens(tokenizer, item.prompt)) for item in self._items)
            ratio = after / before
            items = [
                replace(item, max_new_tokens=max(1, round(ratio * item.max_new_tokens)))
                for item in self._items
            ]
            self._requests[candidate.making] = requests_of(tokenizer, items, self._max_context), ratio
        return self._requests[candidate.making]
