"""`Workload`: the traffic that joules are counted on, and the quality set that must not get worse.

On disk it is a folder with a ``workload.toml`` header beside its items files; docs/workloads.md has
the format and an example.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from negawatt import catalog
from negawatt.errors import UsageError, WorkloadError
from negawatt.workload.corpus import Corpus
from negawatt.workload.datasets import NAMED, entry_of, load
from negawatt.workload.header import Header, Part, read_header
from negawatt.workload.items import QualityItem, RetrieveItem, TrafficItem, kinds_of, queries_among, to_record
from negawatt.workload.metrics import DEFAULT_METRICS
from negawatt.workload.ranking import OVERLAP, depth_of
from negawatt.workload.reader import read_documents, read_quality, read_traffic
from negawatt.workload.split import draw_order

BUNDLED = ("interactive-chat", "offline")
"""Workloads that ship with the package."""

_BUNDLED_FOLDER = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Workload:
    """What a model is asked to do.

    Attributes:
        name, description, source, licence: as in the header; for people.
        traffic: requests, in order; empty where only quality is of interest.
        quality: questions with answers; empty where only energy is of interest.
        metrics: for each kind in `quality`, the metric that judges it.
        provenance: for each file read, the sha256 of its bytes.
    """

    name: str
    description: str
    source: str
    licence: str
    traffic: tuple[TrafficItem, ...]
    quality: tuple[QualityItem, ...]
    metrics: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, ref: str | Path) -> Workload:
        """Open a workload by name (see `Workload.names`), or from a folder or its header file.

        A name goes before a folder of the same name; write ``./name`` for the folder. Nothing is
        downloaded.

        Raises:
            UsageError: no workload of that name, and no such path.
            WorkloadError: the files break the format, or the data behind a name is not here yet.
        """
        if ref in BUNDLED:
            return cls._read(_BUNDLED_FOLDER / str(ref) / "workload.toml")
        if ref in NAMED:
            return cls._from_catalogue(str(ref))
        if ref == "chat-piqa":
            chat, piqa = cls.open("interactive-chat"), cls.open("piqa")
            return chat.with_quality_of(piqa, name="chat-piqa", description="Chat traffic, judged on PIQA.")
        path = Path(ref).expanduser()
        if path.is_dir():
            path = path / "workload.toml"
        if not path.is_file():
            raise UsageError(
                f"no workload {str(ref)!r}: it is none of {', '.join(cls.names())}, and no folder with "
                "a workload.toml"
            )
        return cls._read(path)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names that `open` knows: those shipped here, and those made from data of the catalogue."""
        return (*BUNDLED, *NAMED, "chat-piqa")

    @classmethod
    def _from_catalogue(cls, name: str) -> Workload:
        items, provenance = load(name)
        entry = catalog.entry(entry_of(name))
        source = ", ".join(map(str, entry.packages))
        metrics = {kind: DEFAULT_METRICS[kind] for kind in kinds_of(items)}
        return cls(name, entry.description, source, entry.license, (), items, metrics, provenance)

    @classmethod
    def _read(cls, file: Path) -> Workload:
        header = read_header(file)
        provenance: dict[str, str] = {}
        traffic: tuple[TrafficItem, ...] = ()
        quality: tuple[QualityItem, ...] = ()
        if header.traffic is not None:
            traffic, digest = read_traffic(header.traffic.items)
            provenance[header.traffic.items.name] = _promised(digest, header.traffic)
        if header.quality is not None:
            quality = _read_questions(header, header.quality, provenance)
        return cls(
            header.name, header.description, header.source, header.licence,
            traffic, quality, _metrics(header, quality), provenance,
        )  # fmt: skip

    @property
    def corpus(self) -> Corpus | None:
        """What its queries search; None where it has none."""
        return next((item.corpus for item in queries_among(self.quality)), None)

    @property
    def labelled(self) -> bool:
        """Whether answers are judged by what is right; else by agreement with a reference."""
        return bool(self.quality) and OVERLAP not in self.metrics.values()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that occur in the quality set."""
        return kinds_of(self.quality)

    @property
    def main_kind(self) -> str | None:
        """The kind with the most items in the quality set, whose metric is quoted for the whole.

        The first in the order of `kinds` among equals; None where there is no quality set.
        """
        return max(self.kinds, key=lambda kind: len(self.of_kind(kind)), default=None)

    @property
    def metric(self) -> str | None:
        """The metric of `main_kind`."""
        return self.metrics[self.main_kind] if self.main_kind else None

    def of_kind(self, kind: str) -> tuple[QualityItem, ...]:
        """The items of one kind, in order."""
        return tuple(item for item in self.quality if item.kind == kind)

    @cached_property
    def hash(self) -> str:
        """sha256 of what is asked and how it is judged; names and descriptions do not enter."""
        content: dict[str, Any] = {
            "traffic": [to_record(item) for item in self.traffic],
            "quality": [to_record(item) for item in self.quality],
            "metrics": {kind: self.metrics[kind] for kind in self.kinds},
        }
        if self.corpus is not None:
            content["corpus"] = [self.corpus.sha256, self.corpus.queries_per_document]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split(self, search_share: float, seed: int = 0) -> tuple[Workload, Workload]:
        """Two workloads without a common item: one to search with, one held out for the proof.

        Traffic and quality set are both divided, stratified and the same way every time. The first
        gets `search_share` of the items of each, at least one and not all of them.

        Raises:
            UsageError: the share is not between 0 and 1, or there are too few items to divide.
        """
        if not 0 < search_share < 1:
            raise UsageError(
                f"the share of items to search with must lie between 0 and 1, not {search_share}"
            )
        cuts = []
        for what, n in (("traffic", len(self.traffic)), ("quality", len(self.quality))):
            if n == 1:
                raise UsageError(f"the {what} of {self.name} has a single item, which cannot be divided")
            cuts.append(min(max(round(search_share * n), 1), n - 1) if n else 0)
        traffic, quality = draw_order(self.traffic, seed), draw_order(self.quality, seed)
        return (
            self._with(traffic[: cuts[0]], quality[: cuts[1]]),
            self._with(traffic[cuts[0] :], quality[cuts[1] :]),
        )

    def subset(self, n: int, seed: int = 0) -> Workload:
        """`n` items of the quality set, stratified; all of them where there are fewer. Traffic stays.

        The same seed gives nested subsets: those of a smaller `n` are part of those of a larger.

        Raises:
            UsageError: `n` is below 1.
        """
        if n < 1:
            raise UsageError(f"a subset needs at least 1 item, not {n}")
        return self._with(list(self.traffic), draw_order(self.quality, seed)[:n])

    def with_quality_of(self, other: Workload, *, name: str, description: str) -> Workload:
        """This workload's traffic with the quality set of another."""
        return Workload(
            name, description, f"{self.source}; {other.source}", f"{self.licence}; {other.licence}",
            self.traffic, other.quality, other.metrics, {**self.provenance, **other.provenance},
        )  # fmt: skip

    def _with(self, traffic: list[TrafficItem], quality: list[QualityItem]) -> Workload:
        """The items drawn, in the order of the file."""
        drawn_traffic, drawn_quality = {i.id for i in traffic}, {i.id for i in quality}
        return dataclasses.replace(
            self,
            traffic=tuple(i for i in self.traffic if i.id in drawn_traffic),
            quality=tuple(i for i in self.quality if i.id in drawn_quality),
        )


def _promised(digest: str, part: Part) -> str:
    if part.sha256 is not None and digest != part.sha256:
        raise WorkloadError(
            f"{part.items} is not the file its header promises: sha256 {digest[:12]}…, promised "
            f"{part.sha256[:12]}…; fetch it again, or correct the header if the change is meant"
        )
    return digest


def _read_questions(header: Header, part: Part, provenance: dict[str, str]) -> tuple[QualityItem, ...]:
    """The quality set, with the corpus that it searches where it does; hashes go into `provenance`."""
    corpus: Corpus | None = None
    if header.corpus is not None:
        documents, digest = read_documents(header.corpus.items)
        provenance[header.corpus.items.name] = _promised(digest, header.corpus)
        if len(documents) < 2:
            raise WorkloadError(f"{header.corpus.items}: a corpus needs at least 2 documents, not 1")
        corpus = Corpus(documents, header.queries_per_document or 1.0)
    quality, digest = read_quality(part.items, corpus)
    provenance[part.items.name] = _promised(digest, part)
    if corpus is None:
        return quality
    queries = queries_among(quality)
    if len(queries) < len(quality):
        raise WorkloadError(
            f"{header.file}: a quality set that searches a corpus holds nothing else, and "
            f"{next(i.id for i in quality if not isinstance(i, RetrieveItem))!r} is another question"
        )
    if header.traffic is not None:
        raise WorkloadError(
            f"{header.file}: the queries and documents of a search are its traffic; leave out [traffic]"
        )
    if len({bool(item.relevant) for item in queries}) > 1:
        unknown = next(item.id for item in queries if not item.relevant)
        raise WorkloadError(
            f"{part.items}: 'relevant' must be given for every query or for none, and {unknown!r} lacks it"
        )
    if header.queries_per_document is None:  # as the files have it: all of them once
        corpus = Corpus(corpus.documents, len(queries) / len(corpus.documents))
        return tuple(dataclasses.replace(item, corpus=corpus) for item in queries)
    return quality


def _metrics(header: Header, quality: tuple[QualityItem, ...]) -> dict[str, str]:
    found = kinds_of(quality)
    if header.kinds and set(header.kinds) != set(found):
        raise WorkloadError(
            f"{header.file}: 'kinds' promises {', '.join(header.kinds)}, but the quality set holds "
            f"{', '.join(found) or 'no items'}"
        )
    chosen = {kind: header.metrics.get(kind, DEFAULT_METRICS[kind]) for kind in found}
    if queries := queries_among(quality):
        chosen["retrieve"] = _metric_of_search(header, queries)
    elif header.corpus is not None:
        raise WorkloadError(f"{header.file}: no question of the quality set searches the [corpus]")
    return chosen


def _metric_of_search(header: Header, queries: list[RetrieveItem]) -> str:
    known = bool(queries[0].relevant)
    name = header.metrics.get("retrieve", DEFAULT_METRICS["retrieve"] if known else OVERLAP)
    if not known and name != OVERLAP:
        raise WorkloadError(
            f"{header.file}: {name} needs 'relevant' documents, which the queries do not name; {OVERLAP} "
            "needs none"
        )
    if (depth := depth_of(name)) > (count := len(queries[0].corpus.documents)):
        raise WorkloadError(
            f"{header.file}: {name} looks at {depth} documents, and the corpus holds {count}; give more "
            "documents" + (", or judge by recall@1" if known else "")
        )
    return name
