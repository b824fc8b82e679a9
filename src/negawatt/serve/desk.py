"""`Desk`: asks the gate from threads, so that the event loop never waits for a database."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from negawatt.serve.admission import Caller, Estimate, Gate, Reservation

ASKING = 4
"""Holds that are asked for at once; a database lets one writer at a time through, so more would not help."""
KNOWING = 2
"""Callers that are looked up at once; apart from the holds, because reading waits for no writer."""


class Desk:
    """Whether there is enough and holding it stays one transaction of the gate's; only where it is waited for
    is different: streams go on, health is told and others are refused while a database takes its time.

    Args:
        gate: what is asked.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._asking = ThreadPoolExecutor(ASKING, "negawatt-hold")
        self._knowing = ThreadPoolExecutor(KNOWING, "negawatt-caller")

    async def caller(self, authorization: str | None) -> Caller:
        """As `Gate.caller`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._knowing, self._gate.caller, authorization
        )

    async def reserve(self, caller: Caller, estimate: Estimate) -> Reservation:
        """As `Gate.reserve`. Of one who is gone before the answer, what was held is given back."""
        asked = asyncio.get_running_loop().run_in_executor(self._asking, self._gate.reserve, caller, estimate)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(_give_back)
            raise

    def close(self) -> None:
        """End the threads, those that wait for a database once it has answered."""
        self._asking.shutdown(wait=False)
        self._knowing.shutdown(wait=False)


def _give_back(asked: asyncio.Future[Reservation]) -> None:
    if not asked.cancelled() and asked.exception() is None:
        asked.result().release()
