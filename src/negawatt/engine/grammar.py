"""`Grammars` and `Constraint`: an answer held to a grammar, token by token, through llguidance.

A grammar is a text in llguidance's own form; `json_grammar` makes one of a JSON schema. It says which tokens
may come next: all others are struck from the logits before one is picked, so the answer always fits, and what
can only be written in one way need not be asked of the model at all.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Tokenizer
from negawatt.errors import EngineError, UsageError, require

LONGEST = 64 << 10
"""Characters of a grammar, at most."""
_KEPT = 64
"""Grammars that are kept compiled."""
_OPTIONS = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""JSON is written in one way, that of Python's ``json.dumps``: all between the values is then without choice,
and what has none is not asked of the model."""

Row = NDArray[np.float32]


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON texts that are valid under a schema (JSON Schema 2020-12).

    Properties come in the order in which the schema names them.

    Raises:
        MissingDependency: llguidance is not installed.
        UsageError: the schema is wrong, too long, or says what cannot be held to; the message says what.
    """
    grammar = str(_library().LLMatcher.grammar_from_json_schema(json.dumps({**schema, **_OPTIONS})))
    check(grammar)
    return grammar


def json_lark(schema: Mapping[str, Any]) -> str:
    """A term of Lark that stands for the JSON texts that are valid under a schema."""
    return f"%json {json.dumps({**schema, **_OPTIONS})}"


def lark_grammar(text: str) -> str:
    """The grammar that a text in llguidance's variant of Lark describes.

    Raises:
        MissingDependency: llguidance is not installed.
        UsageError: it describes none.
    """
    grammar = str(_library().LLMatcher.grammar_from_lark(text))
    check(grammar)
    return grammar


def check(grammar: str) -> None:
    """
    Raises:
        UsageError: the grammar is wrong, or too long.
    """
    if len(grammar) > LONGEST:
        raise UsageError(f"it is longer than {LONGEST} characters")
    if problem := _problem(grammar):
        raise UsageError(problem)


@functools.lru_cache(maxsize=_KEPT)
def _problem(grammar: str) -> str:
    said = str(_library().LLMatcher.validate_grammar(grammar))
    return "" if said.startswith("WARNING") else " ".join(said.split())[:300]


def _library() -> Any:
    return require("llguidance", extra="structured")


class Grammars:
    """Makes the constraints of one model's answers.

    Args:
        tokenizer: the model's.
        vocab_size: length of a row of logits.

    Raises:
        MissingDependency: llguidance is not installed.
        EngineError: it cannot work with such a tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        library = _library()
        self.eos_ids, self.vocab_size = tokenizer.eos_ids, vocab_size
        try:
            self._tokens = library.LLTokenizer(
                tokenizer.definition, n_vocab=vocab_size, eos_token=sorted(tokenizer.eos_ids) or None,
                slices=library.LLTokenizer.json_slices(),
            )  # fmt: skip
        except (ValueError, RuntimeError) as exc:
            raise EngineError(f"answers of this model cannot be held to a grammar: {exc}") from exc
        self._compiled: dict[str, Any] = {}

    def constraint(self, grammar: str) -> Constraint:
        """A new answer's.

        Raises:
            EngineError: the grammar does not fit the model.
        """
        begun_s = time.thread_time()
        known = self._compiled.get(grammar)
        if known is None:
            known = _library().LLMatcher(self._tokens, grammar, log_level=0)
            if known.is_error():
                raise EngineError(" ".join(known.get_error().split())[:300])
            if len(self._compiled) >= _KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[grammar] = known
        constraint = Constraint(known.deep_copy(), self.eos_ids, self.vocab_size)
        constraint.cpu_s = time.thread_time() - begun_s
        return constraint


class Constraint:
    """Where an answer stands in its grammar.

    Args:
        matcher: llguidance's, at the beginning.
        eos_ids: tokens that end an answer.
        vocab_size: length of a row of logits.

    Attributes:
        cpu_s: seconds of this thread spent on it since this was last set to 0.
        ended: whether nothing more can come.
    """

    def __init__(self, matcher: Any, eos_ids: frozenset[int], vocab_size: int) -> None:
        self._matcher, self.eos_ids = matcher, eos_ids
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)
        self.cpu_s = 0.0
        self.ended = False

    def masked(self, logits: Row) -> Row:
        """The logits with what must not come next at minus infinity; shape ``(vocabulary,)``.

        Raises:
            EngineError: the grammar has grown too large on the way.
        """
        begun_s = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        allowed = np.unpackbits(self._mask.view(np.uint8), count=len(logits), bitorder="little")
        found: Row = np.where(allowed, logits, np.float32(-np.inf))
        self.cpu_s += time.thread_time() - begun_s
        return found

    def accept(self, token: int) -> None:
        """The answer goes on with this token, which `masked` left over or `forced` gave.

        Raises:
            EngineError: it may not.
        """
        begun_s = time.thread_time()
        self._matcher.consume_token(token)
        self._check()
        self.ended = token in self.eos_ids or bool(self._matcher.is_stopped())
        self.cpu_s += time.thread_time() - begun_s

    def forced(self) -> list[int]:
        """The tokens with which the answer can only go on; none where there is a choice."""
        if self.ended:
            return []
        begun_s = time.thread_time()
        found = [int(token) for token in self._matcher.compute_ff_tokens()]
        self.cpu_s += time.thread_time() - begun_s
        return found

    def fitting(self, tokens: list[int]) -> list[int]:
        """The first of some tokens, as far as they may come next."""
        begun_s = time.thread_time()
        fit = int(self._matcher.validate_tokens(tokens)) if tokens else 0
        self.cpu_s += time.thread_time() - begun_s
        return tokens[:fit]

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(" ".join(self._matcher.get_error().split())[:300])
