"""``python -m negawatt.engine.llamacpp_trial VARIANT MODEL``: exit 0 if the variant evaluates a prompt.

Run by `negawatt.engine.llamacpp_library.choose_variant` in a process of its own, because the way to
find out may be an illegal instruction.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from negawatt.engine.backend import Chunk
from negawatt.engine.llamacpp import LlamaCppBackend
from negawatt.engine.settings import Settings
from negawatt.errors import NegawattError


def main() -> None:
    variant, model = sys.argv[1:]
    os.environ["NEGAWATT_LLAMACPP_VARIANT"] = variant
    try:
        backend = LlamaCppBackend(Settings(engine="llamacpp", threads=1, max_context=64))
        backend.load(Path(model))
        backend.forward([Chunk(0, list(range(1, 33)))])
        backend.forward([Chunk(0, [1])])
    except NegawattError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
