"""`Traffic`: the same jobs for candidates that may cut text into other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.engine import Request
from negawatt.errors import EngineError, WorkloadError
from negawatt.profiling.quality import prompt_tokens
from negawatt.profiling.window import Job, jobs_of
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.workshop import Workshop
from negawatt.workload import QualityItem, TrafficItem


class Traffic:
    """What a workload's joules are counted on, in every candidate's own tokens.

    A model with another tokenizer, or with fewer tokens, needs another number of tokens for the same text.
    So that costs are of the same text, its answers are lengthened in proportion, and what a token of it costs
    is multiplied by `per_token`: costs are told for a token as the baseline cuts it. Questions that are
    answered by scoring or labelling cost what an answer costs, in whatever tokens.

    Args:
        workshop: gives the candidates' tokenizers.
        items: as `negawatt.profiling.window.counted_on` gives them.
        max_context: tokens that a sequence may hold.
    """

    def __init__(
        self, workshop: Workshop, items: Sequence[TrafficItem | QualityItem], max_context: int
    ) -> None:
        self._workshop, self._items, self._max_context = workshop, items, max_context
        own = jobs_of(workshop.base.tokenizer, items, max_context)
        self._jobs: dict[tuple[str, tuple[str, ...]], tuple[list[Job], float]] = {("", ()): (own, 1.0)}

    def jobs(self, candidate: Candidate) -> list[Job]:
        """Requests of exactly the stated lengths, which no token ends early, or questions.

        Raises:
            EngineError: the candidate's weights cannot be made, or a request does not fit in its tokens.
        """
        return self._of(candidate)[0]

    def per_token(self, candidate: Candidate) -> float:
        """Tokens of the candidate for a token of the baseline's, over the prompts."""
        return self._of(candidate)[1]

    def _of(self, candidate: Candidate) -> tuple[list[Job], float]:
        if candidate.making not in self._jobs:
            own, _ = self._jobs["", ()]
            before = sum(len(job.tokens) for job in own if isinstance(job, Request))
            if not before:  # questions
                return own, 1.0
            tokenizer = self._workshop.artifact(candidate).tokenizer
            asked = [item for item in self._items if isinstance(item, TrafficItem)]
            ratio = sum(len(prompt_tokens(tokenizer, item.prompt)) for item in asked) / before
            items = [
                replace(item, max_new_tokens=max(1, round(ratio * item.max_new_tokens))) for item in asked
            ]
            try:
                made = jobs_of(tokenizer, items, self._max_context)
            except WorkloadError as exc:
                raise EngineError(f"in the tokens of {candidate}: {exc}") from exc
            self._jobs[candidate.making] = made, ratio
        return self._jobs[candidate.making]
