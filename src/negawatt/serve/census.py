"""`Census`: what a server holds at this moment, counted where it is held: what nobody gave back shows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass

from negawatt.serve.model import ServedModel


@dataclass(frozen=True, slots=True)
class Census:
    """An idle server has no requests, jobs, accounts, sequences and promised tokens; the rest goes back to
    what it was before.

    Attributes:
        requests: running or waiting.
        jobs: sequences that were handed to a worker and have not ended.
        accounts: sequences that are still charged to somebody.
        sequences, promised_tokens, kept_tokens: of the workers' caches as they last told, see
            `negawatt.engine.cells.Occupancy`.
        tasks: of asyncio, the asking one included.
        descriptors: open files and sockets of the process; None where the system does not tell.
    """

    requests: int
    jobs: int
    accounts: int
    sequences: int
    promised_tokens: int
    kept_tokens: int
    tasks: int
    descriptors: int | None

    @classmethod
    def of(cls, models: Iterable[ServedModel]) -> Census:
        """Count; called from the event loop."""
        served = list(models)
        held = [model.held for model in served]
        cells = [occupancy for _, _, occupancy in held]
        return cls(
            requests=sum(model.busy for model in served),
            jobs=sum(jobs for jobs, _, _ in held),
            accounts=sum(accounts for _, accounts, _ in held),
            sequences=sum(c.live for c in cells),
            promised_tokens=sum(c.promised for c in cells),
            kept_tokens=sum(c.kept for c in cells),
            tasks=len(asyncio.all_tasks()),
            descriptors=_descriptors(),
        )


def _descriptors() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None
