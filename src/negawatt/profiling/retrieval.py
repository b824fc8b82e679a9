"""`Index`: the vectors of a corpus by one engine, and which documents are nearest to a query's vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.engine.embedder import of_length_1
from negawatt.errors import EngineError, WorkloadError
from negawatt.home import written_beside
from negawatt.workload import Corpus, Document, Ranked
from negawatt.workload.items import RetrieveItem
from negawatt.workload.ranking import DEPTH

Array = NDArray[np.float32]
Tick = Callable[[int], None]

DOCUMENTS_PER_CALL = 128


@dataclass(frozen=True)
class Index:
    """Vectors of a corpus, shape ``(documents, width)``, each of length 1: nearness is the cosine."""

    corpus: Corpus
    vectors: Array

    @classmethod
    def of(cls, engine: Engine, corpus: Corpus, tick: Tick = lambda done: None) -> Index:
        """Embed a corpus; documents of similar length together.

        Args:
            engine: open.
            tick: told how many documents are done.

        Raises:
            WorkloadError: the model does not embed, or a document does not fit (named).
        """
        ordered, rows = corpus.by_length, list[Array]()
        texts = document_tokens(engine.artifact, engine.settings, ordered)
        for start in range(0, len(texts), DOCUMENTS_PER_CALL):
            rows.append(engine.embed(texts[start : start + DOCUMENTS_PER_CALL]).vectors)
            tick(start + len(rows[-1]))
        vectors = np.empty((len(ordered), rows[0].shape[1]), np.float32)
        vectors[[corpus.places[document.id] for document in ordered]] = of_length_1(np.concatenate(rows))
        return cls(corpus, vectors)

    @classmethod
    def read(cls, file: Path, corpus: Corpus) -> Index | None:
        """What `write` kept; None where there is nothing, or something else."""
        try:
            with file.open("rb") as stream:
                vectors = np.lib.format.read_array(stream, allow_pickle=False)
        except (OSError, ValueError):
            return None  # never embedded, or damaged: embed again
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(corpus.documents):
            return None
        return cls(corpus, vectors)

    def write(self, file: Path) -> None:
        """Keep the vectors, whole or not at all."""
        with written_beside(file) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array(stream, self.vectors, allow_pickle=False)

    def nearest(self, queries: Array) -> list[Ranked]:
        """The nearest documents of each query, whose vectors have shape ``(queries, width)``.

        Of documents that are equally near the first of the corpus comes first.

        Raises:
            EngineError: a vector holds something else than numbers.
        """
        likeness = of_length_1(queries) @ self.vectors.T
        if not np.isfinite(likeness).all():
            raise EngineError("the engine embedded texts as NaN; its arithmetic overflowed")
        order = np.argsort(-likeness, axis=1, kind="stable")[:, :DEPTH]
        return [Ranked(tuple(self.corpus.documents[place].id for place in row)) for row in order]


def query_tokens(artifact: Artifact, settings: Settings, items: Sequence[RetrieveItem]) -> list[list[int]]:
    """Queries as a model reads them that embeds texts under these settings.

    Raises:
        WorkloadError: the model does not embed, or one does not fit (named).
    """
    return _tokens(artifact, settings, "query", [(item.id, item.query) for item in items])


def document_tokens(artifact: Artifact, settings: Settings, documents: Sequence[Document]) -> list[list[int]]:
    """The same of documents."""
    return _tokens(artifact, settings, "document", [(document.id, document.text) for document in documents])


def _tokens(
    artifact: Artifact, settings: Settings, kind: str, texts: Sequence[tuple[str, str]]
) -> list[list[int]]:
    pooling = artifact.pooling(settings.pooling)
    if pooling is None:
        raise WorkloadError(
            f"{artifact.name} turns no texts into vectors, which searching takes; choose a model that embeds"
        )
    most = min(settings.max_context, pooling.max_tokens or settings.max_context)
    found = []
    for name, text in texts:
        tokens = artifact.tokenizer.encode(pooling.prompt + text, add_special=True)
        if len(tokens) > most:
            raise WorkloadError(
                f"{kind} {name!r} holds {len(tokens)} tokens, and {artifact.name} reads at most {most}; "
                "shorten it, or divide it into several"
            )
        found.append(tokens)
    return found
