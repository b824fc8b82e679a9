"""``python -m negawatt.tuning.pass_worker``: one call of `compress` in a process of its own.

The job comes as a line of JSON on standard input; lines of JSON go out on standard output: progress, then
either the result or the error. Its memory and CPU time are the call's own, and when it dies the search lives
on. When the search dies, standard input ends, and so does this process, at once and wherever it is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from negawatt.compress import Recipe, compress, parse
from negawatt.errors import NegawattError

TELL_EVERY_S = 0.2


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    Thread(target=end_with_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not tear our lines
    told = 0.0

    def tell(done: float, total: float | None, what: str) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            out.write(json.dumps({"progress": what, "done": done, "total": total}) + "\n")

    passes = tuple(parse(each) for each in job["passes"])
    answer: dict[str, Any]
    try:
        recipe = Recipe(
            job["model"], passes, job["text"], job["windows"], job["heldout"], job["length"], job["seed"]
        )
        compress(recipe, Path(job["output"]), keep_worse=True, progress=tell)
        answer = {"made": job["output"]}
    except NegawattError as exc:
        answer = {"error": str(exc), "kind": type(exc).__name__}
    except MemoryError:
        answer = {"error": "memory ran out", "kind": "EngineError"}
    with suppress(BrokenPipeError):  # nobody waits any more
        out.write(json.dumps(answer) + "\n")


def end_with_parent() -> None:
    """Wait until standard input ends, as it does with who started this process; then end, wherever it is."""
    os.read(0, 1)  # nothing more is ever sent: it returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    main()
