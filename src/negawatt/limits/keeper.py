"""``python -m negawatt.limits.keeper ROOT JOURNAL``: puts back what its parent lowered, when that ends.

It reads its standard input, whose other end the parent holds and nobody else. When the parent ends in order,
it has put everything back itself and ended this process; when it is killed, the kernel closes its end.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

PATIENCE_S = 5.0
"""The kernel closes a dead process's files one after the other: its lock may be freed after its pipe."""


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for all of a session: it ends after what it watches
    root, journal = map(Path, sys.argv[1:])
    sys.stdin.buffer.read()
    if not journal.exists():
        return
    from negawatt.limits.journal import Journal
    from negawatt.limits.system import System
    from negawatt.limits.turn import put_back

    put_back(System(root), Journal(journal), patience_s=PATIENCE_S)


if __name__ == "__main__":
    main()
