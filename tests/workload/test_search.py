"""Queries that search a corpus: the format, its faults, and the metrics by definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import catalog
from negawatt.errors import UsageError, WorkloadError
from negawatt.testing.small_workload import small_search
from negawatt.workload import (
    Corpus,
    Document,
    Generated,
    RankAsk,
    Ranked,
    RetrieveItem,
    Workload,
    ask,
    judge,
    judge_overlap,
)
from negawatt.workload.writer import write_workload

CORPUS = Corpus(tuple(Document(f"d{n}", "word " * (n + 1)) for n in range(20)), 1.0)
HEADER = """schema = 1
name = "search"
description = "for a test"
source = "this file"
licence = "CC0-1.0"
[quality]
items = "queries.jsonl"
"""
SECTION = '[corpus]\nitems = "corpus.jsonl"\n'


def asked(*relevant: str) -> RetrieveItem:
    return RetrieveItem("q", "words", relevant, CORPUS)


def ranked(*names: int) -> Ranked:
    return Ranked(tuple(f"d{n}" for n in names))


# -- metrics -------------------------------------------------------------------------------------------


def test_one_relevant_document_by_its_rank() -> None:
    third = ranked(5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    scores = {
        name: judge(name, asked("d7"), third) for name in ("ndcg@10", "mrr@10", "recall@10", "recall@1")
    }
    assert scores == {"ndcg@10": 1 / math.log2(4), "mrr@10": 1 / 3, "recall@10": 1.0, "recall@1": 0.0}
    absent = [judge(name, asked("d0"), third) for name in scores]
    assert absent == [0.0, 0.0, 0.0, 0.0]


def test_several_relevant_documents() -> None:
    """Ranks 1 and 4 of three relevant ones; gains by hand."""
    item, answer = asked("d1", "d2", "d3"), ranked(1, 9, 8, 2, 7)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert judge("ndcg@10", item, answer) == pytest.approx((1 + 1 / math.log2(5)) / ideal)
    assert judge("recall@10", item, answer) == pytest.approx(2 / 3)
    assert judge("recall@1", item, answer) == pytest.approx(1 / 3)
    assert judge("mrr@10", item, answer) == 1.0


places = st.permutations(range(20)).map(lambda p: tuple(p[:10]))
named = st.sets(st.integers(0, 19), min_size=1).map(lambda s: tuple(f"d{n}" for n in sorted(s)))


@given(places, named, st.integers(0, 8))
def test_scores_stay_within_0_and_1_and_a_better_rank_is_never_worse(
    order: tuple[int, ...], relevant: tuple[str, ...], place: int
) -> None:
    swapped = list(order)
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    first, second = f"d{order[place]}" in relevant, f"d{order[place + 1]}" in relevant
    for name in ("ndcg@10", "mrr@10", "recall@10", "recall@1"):
        before, after = (judge(name, asked(*relevant), ranked(*o)) for o in (order, swapped))
        assert 0 <= before <= 1
        assert after >= before or first or not second
        assert after == before or first != second


def test_overlap_with_a_reference_counts_documents_and_not_their_order() -> None:
    assert judge_overlap(ranked(*range(10)), ranked(*reversed(range(10)))) == 1.0
    assert judge_overlap(ranked(*range(10)), ranked(*range(5, 15))) == 0.5
    with pytest.raises(UsageError, match="two rankings"):
        judge_overlap(ranked(1), Generated("d1"))


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"does not judge items of kind 'retrieve'; ndcg@10, mrr@10"):
        judge("accuracy", asked("d1"), ranked(1))
    with pytest.raises(UsageError, match="needs a ranking"):
        judge("ndcg@10", asked("d1"), Generated("d1"))
    with pytest.raises(UsageError, match="names no relevant document"):
        judge("ndcg@10", asked(), ranked(1))
    for documents, queries, said in (
        (CORPUS.documents[:1], 1.0, "at least 2 documents, not 1"),
        ((*CORPUS.documents, CORPUS.documents[3]), 1.0, "the same id"),
        (CORPUS.documents, 0.0, "above 0, not 0"),
    ):
        with pytest.raises(UsageError, match=said):
            Corpus(documents, queries)


# -- a corpus --------------------------------------------------------------------------------------------


def test_a_sample_follows_from_the_names_and_covers_the_lengths() -> None:
    found = CORPUS.sample(5, ["a", "b"])
    assert found == CORPUS.sample(5, ["a", "b"])
    lengths = sorted(len(document.text) // 5 for document in found)
    assert all(4 * k < length <= 4 * k + 5 for k, length in enumerate(lengths))
    assert len({tuple(CORPUS.sample(5, [str(n)])) for n in range(30)}) > 2
    assert len(CORPUS.sample(50, ["a"])) == 50


def test_equal_corpora_are_equal_and_cheap_to_show() -> None:
    same = Corpus(CORPUS.documents, 1.0)
    assert same == CORPUS and hash(same) == hash(CORPUS)
    assert Corpus(CORPUS.documents, 2.0) != CORPUS
    assert len(repr(RetrieveItem("q", "words", (), CORPUS))) < 200
    assert ask(asked()) == RankAsk("words", CORPUS)


# -- the format ------------------------------------------------------------------------------------------


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    workload = Workload.open(small_search(tmp_path / "words", more="queries_per_document = 12.5\n"))
    assert workload.corpus is not None and workload.corpus.queries_per_document == 12.5
    assert (len(workload.quality), len(workload.corpus.documents)) == (48, 48)
    assert workload.metrics == {"retrieve": "ndcg@10"} and workload.labelled
    again = Workload.open(write_workload(workload, tmp_path / "again"))
    assert again.quality == workload.quality and again.hash == workload.hash
    assert set(again.provenance) == {"quality.jsonl", "corpus.jsonl"}
    usual = Workload.open(small_search(tmp_path / "usual"))
    assert usual.corpus is not None and usual.corpus.queries_per_document == 1.0
    assert usual.hash != workload.hash


def test_parts_of_a_search_search_the_whole_corpus(tmp_path: Path) -> None:
    workload = Workload.open(small_search(tmp_path / "words"))
    ours, theirs = workload.split(0.25)
    assert ours.corpus == theirs.corpus == workload.corpus
    assert len(ours.quality) == 12 and not {i.id for i in ours.quality} & {i.id for i in theirs.quality}


def test_queries_that_name_no_document_are_judged_by_agreement(tmp_path: Path) -> None:
    workload = Workload.open(small_search(tmp_path / "words", known=False))
    assert workload.metrics == {"retrieve": "overlap@10"} and not workload.labelled
    told = small_search(tmp_path / "told")
    text = (told / "workload.toml").read_text()
    (told / "workload.toml").write_text(text + '[quality.metrics]\nretrieve = "overlap@10"\n')
    assert not Workload.open(told).labelled


QUERY = {"id": "q", "kind": "retrieve", "query": "words", "relevant": ["d1"]}
DOCUMENTS = [{"id": f"d{n}", "text": f"text {n}"} for n in range(12)]
OTHER = {"id": "a", "kind": "choose", "context": "c", "choices": ["x", "y"], "answer": 0}


@pytest.mark.parametrize(
    ("queries", "documents", "header", "said"),
    [
        ([{**QUERY, "relevant": ["d99"]}], DOCUMENTS, SECTION, "no document \"d99\""),
        ([{**QUERY, "relevant": ["d1", "d1"]}], DOCUMENTS, SECTION, "the same document twice"),
        ([{**QUERY, "relevant": []}], DOCUMENTS, SECTION, "'relevant' needs at least 1 text"),
        ([{**QUERY, "query": ""}], DOCUMENTS, SECTION, "'query' must be a text that is not empty"),
        ([{**QUERY, "corpus": "x"}], DOCUMENTS, SECTION, "unknown field 'corpus'"),
        ([QUERY], DOCUMENTS, "", "the header names none; add a [corpus] section"),
        ([QUERY], [], SECTION, "corpus.jsonl holds no items"),
        ([QUERY], DOCUMENTS[1:2], SECTION, "needs at least 2 documents, not 1"),
        ([QUERY], DOCUMENTS[:5], SECTION, "ndcg@10 looks at 10 documents, and the corpus holds 5"),
        ([QUERY], [*DOCUMENTS, DOCUMENTS[0]], SECTION, "line 13, item 'd0': the id was used on line 1"),
        ([QUERY], [{"id": "d1", "text": ""}], SECTION, "'text' must be a text that is not empty"),
        ([QUERY, OTHER], DOCUMENTS, SECTION, "holds nothing else, and 'a' is another question"),
        ([OTHER], DOCUMENTS, SECTION, "holds nothing else, and 'a' is another question"),
        ([QUERY, {"id": "r", "kind": "retrieve", "query": "w"}], DOCUMENTS, SECTION, "and 'r' lacks it"),
        ([{k: v for k, v in QUERY.items() if k != "relevant"}], DOCUMENTS,
         '[quality.metrics]\nretrieve = "mrr@10"\n' + SECTION, "mrr@10 needs 'relevant' documents"),
        ([QUERY], DOCUMENTS, SECTION + "queries_per_document = 0\n", "above 0, not 0"),
        ([QUERY], DOCUMENTS, SECTION + "queries_per_document = true\n", "above 0, not True"),
        ([QUERY], DOCUMENTS, SECTION + 'sha256 = "' + 64 * "0" + '"\n', "not the file its header promises"),
        ([QUERY], DOCUMENTS, SECTION + "depth = 3\n", "unknown field 'depth' of [corpus]"),
        ([QUERY], DOCUMENTS, '[traffic]\nitems = "traffic.jsonl"\n' + SECTION, "leave out [traffic]"),
    ],
)  # fmt: skip
def test_faults_get_one_sentence(
    tmp_path: Path, queries: list[dict[str, Any]], documents: list[dict[str, Any]], header: str, said: str
) -> None:
    (tmp_path / "workload.toml").write_text(HEADER + header)
    traffic = [{"id": "t", "prompt": "p", "max_new_tokens": 4}]
    for name, records in (("queries", queries), ("corpus", documents), ("traffic", traffic)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(WorkloadError) as caught:
        Workload.open(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_few_documents_can_be_searched_for_the_first(tmp_path: Path) -> None:
    folder = small_search(tmp_path, 5)
    text = (folder / "workload.toml").read_text()
    (folder / "workload.toml").write_text(text + '[quality.metrics]\nretrieve = "recall@1"\n')
    assert Workload.open(folder).metric == "recall@1"


def test_articles_are_found_by_their_summaries() -> None:
    catalog.pull("xsum")
    workload = Workload.open("xsum-search")
    assert workload.corpus is not None and len(workload.quality) == len(workload.corpus.documents) == 1000
    assert all(isinstance(i, RetrieveItem) and i.relevant == (i.id,) for i in workload.quality)
    assert max(len(document.text) for document in workload.corpus.documents) == 500
    assert set(workload.provenance) == {"xsum/test.jsonl"}
