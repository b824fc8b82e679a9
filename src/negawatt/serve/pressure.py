"""`Pressure`: how fast a model works, and how long one that comes now would wait until it is begun."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from negawatt.engine.batching import Report
from negawatt.serve.admission import Refused
from negawatt.serve.options import ModelOptions
from negawatt.serve.queue import FairQueue
from negawatt.serve.task import Choice, Task

_STEPS, _ANSWERS = 0.05, 0.1
"""How much the newest step, and the newest answer, weigh in what is thought of the next."""


class Pressure:
    """Attributes:
    tokens_s: tokens, read and written, that the engine takes in a second of its steps.
    step_s: seconds of a step.
    answer_tokens: length of an answer, as they have been lately.
    """

    def __init__(self) -> None:
        self.tokens_s, self.step_s, self.answer_tokens = 50.0, 0.05, 256.0

    def step(self, report: Report) -> None:
        """Learn from a step of the engine."""
        if report.wall_s > 0 and report.parts:
            fed = sum(part.fed for part in report.parts)
            self.tokens_s += _STEPS * (fed / report.wall_s - self.tokens_s)
            self.step_s += _STEPS * (report.wall_s - self.step_s)

    def answered(self, tokens: int) -> None:
        """Learn from an answer that came to its end."""
        self.answer_tokens += _ANSWERS * (tokens - self.answer_tokens)

    def expected_s(
        self,
        options: ModelOptions,
        jobs: Collection[tuple[Task, Choice]],
        queue: FairQueue[Task],
        tokens: int,
    ) -> float:
        """Seconds until one that comes now is begun.

        Args:
            jobs: that the worker has.
            queue: of those that wait.
            tokens: of the one that comes, prompt and answers at their longest; 0 where that is not known.
        """
        slots, before = options.settings.batch, len(jobs) + len(queue)
        held = sum(len(choice.prompt) + task.sampling.max_tokens for task, choice in jobs)
        if held + tokens > options.session.capacity:  # it waits for room in the cache, not for a slot
            before = max(before, slots)
        running = [(choice.tokens, task.sampling.max_tokens) for task, choice in jobs]
        queued = min(queue.work, 2 * self.answer_tokens * len(queue))
        return self.wait_s(before, slots, running, queued)

    def wait_s(
        self, before: int, slots: int, running: Sequence[tuple[int, int]], queued_tokens: float
    ) -> float:
        """Seconds until a slot is free for one that comes now, as answers have been so far.

        Args:
            before: sequences that run or wait.
            slots: that run at once.
            running: of each that runs, the tokens it has written and the most it may write.
            queued_tokens: that those that wait will read and write.
        """
        ends = before + 1 - slots  # so many have to end first
        if ends <= 0:
            return 0.0
        left = sorted(self._left(written, most) for written, most in running)
        if ends <= len(left):
            return left[ends - 1] * self.step_s
        return (sum(left) + queued_tokens) / max(self.tokens_s, 1e-9)

    def _left(self, written: int, most: int) -> float:
        """Tokens that an answer still gets; one that is longer than others gets half as many again."""
        usual = max(self.answer_tokens - written, self.answer_tokens / 2)
        return max(1.0, min(float(most - written), usual))


def refuse_if_crowded(name: str, options: ModelOptions, wait_s: float, waiting: int) -> None:
    """
    Args:
        name: of the model.
        wait_s: that one that comes now would wait.
        waiting: requests that wait already.

    Raises:
        Refused: as many wait as may, or it would take too long (429, with when to come again).
    """
    if waiting >= options.queue_limit and (waiting or wait_s > 0):
        said = f"{waiting} requests are waiting for {name}, as many as may"
        code, after_s = "queue_full", wait_s / 2
    elif options.wait_s is not None and wait_s > options.wait_s:
        said = (
            f"{name} is busy: a request would wait about {wait_s:.1f} s until it is begun, longer than the "
            f"{options.wait_s:g} s that it may"
        )
        code, after_s = "overloaded", wait_s - options.wait_s
    else:
        return
    raise Refused(
        f"{said}; try again later", status=429, kind="rate_limit_error", code=code,
        retry_after_s=max(1.0, min(120.0, after_s)),
    )  # fmt: skip
