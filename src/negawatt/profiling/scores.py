"""`Scores`: quality scores of ways of running a model, answered once and kept.

Scores are kept under ``NEGAWATT_HOME/cache`` by model, workload and everything that changes the
arithmetic (engine and its version, weight format, KV-cache precision), so that a killed search, the
next search, or a profile before it, does not pay for an item twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.engine.backends import backend
from negawatt.home import home, write_json
from negawatt.profiling.quality import (
    ITEMS_PER_CALL,
    Quality,
    ReferenceAnswers,
    agreement,
    answered,
    judged,
    reference_answers,
    scoring_settings,
)
from negawatt.profiling.retrieval import Index
from negawatt.workload import QualityItem, Response, TrafficItem, Workload, judge_overlap
from negawatt.workload.items import queries_among
from negawatt.workload.ranking import OVERLAP

Items = Sequence[QualityItem | TrafficItem]
Tick = Callable[[str], None]


class Scores:
    """Scores of items under any settings; a context manager that ends the engines it opened.

    With a quality set, an item's score is its metric's. Without one, the items are requests of the
    traffic, and a score is the top-1 agreement with what `reference` wrote to it. Of queries whose relevant
    documents nobody knows it is the overlap with what `reference` finds.

    Args:
        artifact, workload: what answers, and what is asked.
        reference: settings that answers are compared with where there are no labels.
        origin: of the model whose answers those are, where it is another than `artifact`.
        apart: where not empty, the scores are kept apart from others under this name.
    """

    def __init__(
        self,
        artifact: Artifact,
        workload: Workload,
        reference: Settings,
        *,
        origin: Scores | None = None,
        apart: str = "",
    ) -> None:
        self.artifact, self.workload, self.reference, self.origin = artifact, workload, reference, origin
        self._apart = apart
        self.labelled = workload.labelled
        self._indexes: dict[str, Index] = {}
        self._engines: dict[Settings, Engine] = {}
        self._scores: dict[str, dict[str, _Kept]] = {}
        self._written: dict[tuple[str, ...], ReferenceAnswers] = {}
        self._ranked: dict[tuple[str, ...], Sequence[Response]] = {}
        self._pace_s: dict[str, float] = {}
        self._closed_cpu_s = 0.0

    def __enter__(self) -> Scores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engines that are open."""
        for settings in list(self._engines):
            self._close(settings)

    def _close(self, settings: Settings) -> None:
        engine = self._engines.pop(settings)
        engine.close()
        self._closed_cpu_s += engine.spent_cpu_s

    @property
    def spent_cpu_s(self) -> float:
        """CPU seconds of all engines that were opened to answer, loading included."""
        return self._closed_cpu_s + sum(engine.spent_cpu_s for engine in self._engines.values())

    def quality(
        self, settings: Settings, items: Items, tick: Tick = lambda text: None, *, margins: bool = False
    ) -> Quality:
        """Scores of the items, answering those not answered before; kept after every few items.

        With `margins`, those too are answered whose margin was not kept.
        """
        key = self._key(settings)
        known = self._known(key)
        missing = [i for i in items if i.id not in known or (margins and known[i.id].margin is None)]
        if missing and self.workload.corpus is not None:
            self._index(settings, tick)
        for start in range(0, len(missing), ITEMS_PER_CALL):
            done = len(items) - len(missing) + start
            tick(f"judging {settings.engine} {settings.weight_format}: {done} of {len(items)} items")
            asked, started = missing[start : start + ITEMS_PER_CALL], time.monotonic()
            fresh = self._answer(settings, asked)
            self._pace_s[key] = (time.monotonic() - started) / len(asked)
            known |= _kept(fresh)
            write_json(self._file(key), known)
        return self._of(known, items)

    def known(self, settings: Settings, items: Items) -> Quality | None:
        """Scores of those of the items that were answered already; None without any."""
        known = self._known(self._key(settings))
        answered = [item for item in items if item.id in known]
        return self._of(known, answered) if answered else None

    def teach(self, settings: Settings, quality: Quality) -> None:
        """Take in scores that were given elsewhere to the same answers."""
        key = self._key(settings)
        known = self._known(key)
        known |= _kept(quality)
        write_json(self._file(key), known)

    def foreseen_s(self, settings: Settings, items: Items) -> float:
        """Seconds that those of the items would take which were not answered before, at the last pace seen.

        0 where no answer has been timed yet.
        """
        key = self._key(settings)
        known = self._known(key)
        return self._pace_s.get(key, 0.0) * sum(item.id not in known for item in items)

    def _of(self, known: dict[str, _Kept], items: Items) -> Quality:
        name = self.workload.metric or "top1_match"
        return Quality(
            name,
            {i.id: known[i.id].score for i in items},
            {i.id: known[i.id].weight for i in items},
            margins={i.id: lead for i in items if (lead := known[i.id].margin) is not None},
        )

    # -- answering -------------------------------------------------------------------------------

    def _answer(self, settings: Settings, items: Items) -> Quality:
        questions = [item for item in items if not isinstance(item, TrafficItem)]
        if self.workload.corpus is not None and not self.labelled:
            theirs = (self.origin or self).ranked(questions)
            ours = self.found(settings, questions)
            scores = map(judge_overlap, theirs, ours)
            return Quality(OVERLAP, {i.id: s for i, s in zip(questions, scores, strict=True)})
        if self.labelled:
            index = self._index(settings) if queries_among(questions) else None
            engine = self._open(scoring_settings(settings))
            return judged(engine, questions, self.workload.metrics, index=index)
        written = (self.origin or self).written(items)
        return agreement(self._open(_alone(settings)), written)["top1_match"]

    def found(self, settings: Settings, queries: Sequence[QualityItem]) -> Sequence[Response]:
        """What queries find in the workload's corpus."""
        index = self._index(settings)
        return answered(self._open(scoring_settings(settings)), queries, index).responses

    def _index(self, settings: Settings, tick: Tick = lambda text: None) -> Index:
        """The vectors of the workload's corpus; embedded once for an arithmetic, and kept."""
        corpus = self.workload.corpus
        assert corpus is not None
        parts = [corpus.sha256, *settings.arithmetic, backend(settings.engine).version(), self._apart]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        file = home() / "cache" / self.artifact.sha256[:16] / "corpus" / f"{key}.npy"
        if key not in self._indexes and (kept := Index.read(file, corpus)) is not None:
            self._indexes[key] = kept
        if key not in self._indexes:
            said, whole = f"embedding with {settings.engine} {settings.weight_format}", len(corpus.documents)
            tick(f"{said}: {whole} documents")
            self._indexes[key] = Index.of(
                self._open(scoring_settings(settings)), corpus,
                lambda done: tick(f"{said}: {done} of {whole} documents"),
            )  # fmt: skip
            self._indexes[key].write(file)
        return self._indexes[key]

    def ranked(self, queries: Sequence[QualityItem]) -> Sequence[Response]:
        """What the reference finds, each set of queries once."""
        ids = tuple(query.id for query in queries)
        if ids not in self._ranked:
            self._ranked[ids] = self.found(self.reference, queries)
        return self._ranked[ids]

    def written(self, items: Items) -> ReferenceAnswers:
        """What the reference writes to items, each set of them once."""
        ids = tuple(item.id for item in items)
        if ids not in self._written:
            self._written[ids] = reference_answers(self._open(_alone(self.reference)), items)
        return self._written[ids]

    def _open(self, settings: Settings) -> Engine:
        if settings not in self._engines:
            kept = {scoring_settings(self.reference), _alone(self.reference)}
            for other in [s for s in self._engines if s not in kept]:
                self._close(other)  # one candidate at a time, beside the reference
            self._engines[settings] = Engine(self.artifact, settings).open()
        return self._engines[settings]

    # -- remembering -----------------------------------------------------------------------------

    def _key(self, settings: Settings) -> str:
        parts = [self.workload.hash, *settings.arithmetic, backend(settings.engine).version()]
        if not self.labelled:
            parts.append(str(self.reference))
            parts += [] if self.origin is None else [self.origin.artifact.sha256]
        parts += [self._apart] if self._apart else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]

    def _file(self, key: str) -> Path:
        return home() / "cache" / self.artifact.sha256[:16] / "quality" / f"{key}.json"

    def _known(self, key: str) -> dict[str, _Kept]:
        if key not in self._scores:
            try:
                stored = json.loads(self._file(key).read_text("utf-8"))
                self._scores[key] = {str(i): _Kept.of(*row) for i, row in stored.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self._scores[key] = {}  # never judged, or the cache is damaged: answer again
        return self._scores[key]


class _Kept(NamedTuple):
    """What is kept of an answer; one of a time before margins were has none."""

    score: float
    weight: float
    margin: float | None

    @classmethod
    def of(cls, score: float, weight: float, margin: float | None = None) -> _Kept:
        return cls(float(score), float(weight), None if margin is None else float(margin))


def _kept(quality: Quality) -> dict[str, _Kept]:
    return {
        i: _Kept(score, quality.weights.get(i, 1.0), quality.margins.get(i))
        for i, score in quality.scores.items()
    }


def _alone(settings: Settings) -> Settings:
    """Distributions along one text at a time."""
    return settings.without_speculation().replace(batch=1)
