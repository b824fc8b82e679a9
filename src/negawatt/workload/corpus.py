"""`Corpus`: the documents that questions of a workload search, each embedded once and compared often."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from negawatt.errors import UsageError


@dataclass(frozen=True, slots=True)
class Document:
    """One text that may be found; `id` is unique within its corpus."""

    id: str
    text: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents, and how often they are searched.

    Two are equal when they hold the same documents in the same order and are searched as often.

    Attributes:
        documents: at least 2, every id once.
        queries_per_document: how many queries come in use for each document that is embedded: the share of
            documents in what joules are counted on. Above 0.
    """

    documents: tuple[Document, ...]
    queries_per_document: float

    def __post_init__(self) -> None:
        if len(self.documents) < 2:
            raise UsageError(f"a corpus needs at least 2 documents, not {len(self.documents)}")
        if len(self.places) < len(self.documents):
            raise UsageError("two documents of a corpus have the same id")
        if not 0 < self.queries_per_document < float("inf"):
            raise UsageError(
                f"queries per document must be a number above 0, not {self.queries_per_document}"
            )

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each document stands, by its id."""
        return {document.id: place for place, document in enumerate(self.documents)}

    @cached_property
    def sha256(self) -> str:
        """Of the documents, whatever searches them."""
        content = [[document.id, document.text] for document in self.documents]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def by_length(self) -> tuple[Document, ...]:
        """The documents, shortest first."""
        return tuple(sorted(self.documents, key=lambda document: (len(document.text), document.id)))

    def sample(self, n: int, names: Iterable[str]) -> list[Document]:
        """`n` documents spread evenly over the lengths; which they are follows from `names` alone.

        A systematic sample: every document has the same chance over all names.
        """
        digest = hashlib.sha256("\0".join(names).encode()).digest()
        start = int.from_bytes(digest[:8], "big") / 2**64
        count = len(self.documents)
        return [self.by_length[int((k + start) * count / n) % count] for k in range(n)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Corpus) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"Corpus({len(self.documents)} documents, {self.sha256[:8]}, {self.queries_per_document!r})"

    @property
    def _identity(self) -> tuple[str, float]:
        return self.sha256, self.queries_per_document
