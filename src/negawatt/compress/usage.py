"""`Usage`: everything that a model is asked, as the tokens that engines feed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from negawatt.artifact import Tokenizer
from negawatt.compress.calibration import Piece, pieces_of
from negawatt.compress.source import Source
from negawatt.profiling.quality import prompt_tokens
from negawatt.workload import GenerateAsk, RankAsk, Workload, ask

Written = tuple[list[int], int]
"""Tokens of a prompt, and how many are written to it."""


@dataclass(frozen=True)
class Usage:
    """What a workload, or a text, consists of.

    Attributes:
        origin: where it comes from, as in `Calibration`.
        pieces: the texts that passes are calibrated and judged on.
        workload: all of the workload, both halves; None for a plain text.
    """

    origin: str
    pieces: tuple[Piece, ...]
    workload: Workload | None

    @classmethod
    def of(cls, source: Source, reference: str, seed: int) -> Usage:
        """Raises:
        UsageError: there is no such file or workload.
        """
        origin, pieces, workload = pieces_of(source, reference, seed)
        return cls(origin, tuple(pieces), workload)

    def encodings(self, tokenizer: Tokenizer) -> Iterator[list[int]]:
        """Every text in the ids of a tokenizer, always in the same order."""
        yield tokenizer.encode("", add_special=True)
        for piece in self.pieces:
            yield tokenizer.encode(piece.text, parse_special=piece.is_chat)
        if self.workload is None:
            return
        for item in (*self.workload.traffic, *self.workload.quality):
            asked = ask(item)
            if isinstance(asked, GenerateAsk):
                yield prompt_tokens(tokenizer, asked.prompt)
                continue
            if isinstance(asked, RankAsk):
                yield tokenizer.encode(asked.query, add_special=True)
                continue
            if asked.context:
                yield prompt_tokens(tokenizer, asked.context)
            for text in asked.continuations:
                # An engine tokenizes plain text and its continuation together.
                before = asked.context if isinstance(asked.context, str) else ""
                yield tokenizer.encode(before + text, add_special=bool(before))

        for document in self.workload.corpus.documents if self.workload.corpus else ():
            yield tokenizer.encode(document.text, add_special=True)

    def written(self, tokenizer: Tokenizer) -> list[Written]:
        """The prompts that the model writes answers to, the shortest answers first."""
        if self.workload is None:
            return []
        found = []
        for item in (*self.workload.traffic, *self.workload.quality):
            asked = ask(item)
            if isinstance(asked, GenerateAsk):
                found.append((prompt_tokens(tokenizer, asked.prompt), asked.max_new_tokens))
        return sorted(found, key=lambda pair: (pair[1], len(pair[0])))
