"""llama.cpp as the judge, in a process of its own: its tokenizer and its logits.

Run as a program it reads one JSON request a line and answers with one JSON line each.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from negawatt import catalog
from negawatt.engine import Settings
from negawatt.engine.backend import Chunk
from negawatt.engine.llamacpp import LlamaCppBackend
from negawatt.engine.llamacpp_library import Library, choose_variant


class Reference:
    """A running llama.cpp with one GGUF file loaded; close it by leaving the ``with`` block."""

    def __init__(self, file: Path) -> None:
        catalog.pull("llamacpp")
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.communicate()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids by llama.cpp's own tokenizer."""
        ids: list[int] = self._ask(text=text, add_special=add_special, parse_special=parse_special)
        return ids

    def logits(self, ids: list[int], scratch: Path) -> np.ndarray:
        """Logits after every token, shape ``(len(ids), vocabulary)``; `scratch` is a file to use."""
        self._ask(ids=ids, out=str(scratch))
        return np.load(scratch)


def _tokens(library: Library, model: int, request: dict[str, Any]) -> list[int]:
    data = request["text"].encode()
    room = (ctypes.c_int32 * (len(data) * 2 + 16))()
    flags = request["add_special"], request["parse_special"]
    vocabulary = library.llama_model_get_vocab(model)
    return list(room[: library.llama_tokenize(vocabulary, data, len(data), room, len(room), *flags)])


def _logits(file: Path, request: dict[str, Any]) -> None:
    backend = LlamaCppBackend(Settings(engine="llamacpp", threads=1, max_context=64))
    backend.load(file)
    (rows,) = backend.forward([Chunk(0, request["ids"], len(request["ids"]))])
    np.save(request["out"], rows)


def main(file: Path) -> None:
    """Answer requests until standard input ends."""
    library = model = None
    for line in sys.stdin:
        request = json.loads(line)
        if "ids" in request:
            print(json.dumps(_logits(file, request)), flush=True)
            continue
        if library is None:
            folder = catalog.pull("llamacpp")
            library = Library(folder, choose_variant(folder, file))
            model = library.llama_model_load_from_file(
                os.fsencode(file), library.llama_model_default_params()
            )
        print(json.dumps(_tokens(library, model, request)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
