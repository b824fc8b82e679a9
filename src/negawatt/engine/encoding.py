"""`Encoding`: many texts on one backend that embeds, a few of similar length a step.

It does for embeddings what `negawatt.engine.batching.Batching` does for answers: requests take turns, so
that a long list delays nobody, and whoever leaves is out of the next step.
"""

from __future__ import annotations

import bisect
import time

from negawatt.engine.backend import Backend, Chunk
from negawatt.engine.batching import STEP_TOKENS, Job, Part, Report
from negawatt.engine.cells import Occupancy


class Encoding:
    """See the module's text.

    Args:
        backend: loaded, one that embeds.
        batch: most texts of a step.
        step_tokens: most tokens of a step, padding included, unless a single text is longer.
    """

    def __init__(self, backend: Backend, batch: int, step_tokens: int = STEP_TOKENS) -> None:
        self.backend, self.batch, self.step_tokens = backend, batch, step_tokens
        self._waiting: dict[int, list[Job]] = {}  # by request, the longest last; whose turn it is comes first
        self._cpu_mark_s = time.process_time()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting)

    @property
    def occupancy(self) -> Occupancy:
        """Nothing: texts that were read leave nothing behind."""
        return Occupancy()

    def submit(self, job: Job) -> None:
        jobs = self._waiting.setdefault(job.id if job.after is None else job.after, [])
        bisect.insort(jobs, job, key=_length)

    def cancel(self, job: int) -> None:
        """Forget a job at once; harmless when it has ended already."""
        for request, jobs in list(self._waiting.items()):
            kept = [other for other in jobs if other.id != job]
            if len(kept) < len(jobs):
                self._keep(request, kept)
                return

    def forget(self) -> None:
        """Nothing is kept from one text to the next."""

    def idle_cpu_s(self) -> float:
        """CPU seconds since the last step or call of this: what was spent on no text."""
        now = time.process_time()
        spent, self._cpu_mark_s = now - self._cpu_mark_s, now
        return spent

    def step(self) -> Report:
        """Embed some of the texts.

        Raises:
            EngineError: the engine failed.
        """
        begun = time.perf_counter()
        jobs = self._taken()
        rows = self.backend.forward([Chunk(slot, job.tokens) for slot, job in enumerate(jobs)])
        return Report(
            parts=tuple(Part(job.id, "prefill", len(job.tokens), 0) for job in jobs),
            started=tuple((job.id, 0) for job in jobs),
            finished=tuple((job.id, "stop") for job in jobs),
            embedded=tuple(
                (job.id, row[0].astype("<f4").tobytes()) for job, row in zip(jobs, rows, strict=True)
            ),
            wall_s=time.perf_counter() - begun,
            cpu_s=self.idle_cpu_s(),
        )

    def _taken(self) -> list[Job]:
        """The texts of the next step, one of each request in turn as long as there is room."""
        taken: list[Job] = []
        longest = 0
        while self._waiting and len(taken) < self.batch:
            request, jobs = next(iter(self._waiting.items()))
            longest = max(longest, len(jobs[-1].tokens))
            if taken and longest * (len(taken) + 1) > self.step_tokens:
                break
            taken.append(jobs.pop())
            del self._waiting[request]
            self._keep(request, jobs)  # last in turn
        return taken

    def _keep(self, request: int, jobs: list[Job]) -> None:
        if jobs:
            self._waiting[request] = jobs
        else:
            self._waiting.pop(request, None)


def _length(job: Job) -> int:
    return len(job.tokens)
