"""`Clerk`: charges receipts, writes them down and gives holds back, from a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

from negawatt.database import DatabaseError
from negawatt.serve.account import Account, Hold
from negawatt.serve.receipt import Receipt

RETRY_S = 1.0
"""After a database that did not answer it is asked again."""
ATTEMPTS = 5
"""A receipt that the database refuses this often, while it takes others, is given up and told to the log."""
_AT_ONCE = 16
"""More would make those wait who want to hold something meanwhile, where there is one writer at a time."""

_log = logging.getLogger("negawatt.serve.clerk")


@dataclass(slots=True, eq=False)
class _Entry:
    hold: Hold | None
    receipt: Receipt | None
    number: int = 0
    refused: int = 0


class Clerk:
    """Settles in the order it was told, several receipts a transaction when there are several; those that
    the database refused at first may come after others.

    While the database is away receipts wait, and none is lost but by the end of this process. Why they wait
    is told to the log when it begins, when it changes and when it ends, not each time it is tried.

    Args:
        account: what is charged.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._waiting: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._told = 0
        self._closing = False
        self._said = ""
        self._thread: threading.Thread | None = None

    def settle(self, hold: Hold | None, receipt: Receipt) -> None:
        """Have a receipt charged and written; returns at once."""
        self._add(_Entry(hold, receipt))

    def release(self, hold: Hold) -> None:
        """Have a hold given back of which nothing was spent; returns at once."""
        if hold.id:
            self._add(_Entry(hold, None))

    def _add(self, entry: _Entry) -> None:
        with self._changed:
            self._told = entry.number = self._told + 1
            self._waiting.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="negawatt-clerk", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Receipts that are not written and holds that are not given back yet."""
        with self._changed:
            return len(self._waiting)

    def flush(self, most_s: float) -> bool:
        """Wait until all that was told so far is written; False when that took too long."""
        with self._changed:
            last = self._told
            return self._changed.wait_for(lambda: not self._waiting or self._waiting[0].number > last, most_s)

    def close(self, most_s: float = 10.0) -> bool:
        """Write what is left and end; False when something could not be written in time."""
        written = self.flush(most_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(most_s)
        return written

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                entries = [self._waiting[i] for i in range(min(_AT_ONCE, len(self._waiting)))]
            written = self._write(entries)
            with self._changed:
                kept = [e for e in entries if e not in written]
                for _ in entries:
                    self._waiting.popleft()
                self._waiting.extendleft(reversed(kept))
                self._changed.notify_all()
                if kept:
                    self._changed.wait_for(lambda: self._closing, RETRY_S)

    def _write(self, entries: list[_Entry]) -> list[_Entry]:
        """Those that are done with: all at once if that goes, else each on its own."""
        try:
            self._account.settle_all([(e.hold, e.receipt) for e in entries])
        except DatabaseError as exc:
            if len(entries) == 1:
                self._say("a receipt waits to be written", exc)
                return []
        else:
            self._say_written()
            return entries
        done: list[_Entry] = []
        refused: list[tuple[_Entry, DatabaseError]] = []
        for entry in entries:
            try:
                self._account.settle_all([(entry.hold, entry.receipt)])
            except DatabaseError as exc:
                refused.append((entry, exc))
            else:
                done.append(entry)
        if refused:
            self._say(f"{len(refused)} receipts wait to be written", refused[0][1])
        else:
            self._say_written()
        for entry, why in refused if done else ():
            entry.refused += 1
            if entry.refused >= ATTEMPTS:
                receipt = entry.receipt
                known = {"request_id": receipt.id} if receipt is not None else None
                _log.error("a receipt is given up: %s", why, extra=known)
                done.append(entry)
        return done

    def _say(self, what: str, why: DatabaseError) -> None:
        if str(why) != self._said:
            self._said = str(why)
            _log.error("%s: %s", what, why)

    def _say_written(self) -> None:
        if self._said:
            self._said = ""
            _log.info("receipts are written again")
