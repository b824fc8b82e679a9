"""The format: what is written reads back, and every fault gets one sentence with file, line and item."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import UsageError, WorkloadError
from negawatt.workload import (
    ChooseItem,
    ClassifyItem,
    GenerateItem,
    Message,
    PerplexityItem,
    QualityItem,
    TrafficItem,
    Workload,
)
from negawatt.workload.items import to_record
from negawatt.workload.reader import MAX_LINE_BYTES, read_quality, read_traffic

HEADER = """
schema = 1
name = "test"
description = "for a test"
source = "this file"
licence = "CC0-1.0"
"""
CHOOSE = {"id": "a", "kind": "choose", "context": "c", "choices": ["x", "y"], "answer": 0}
CLASSIFY = {"id": "a", "kind": "classify", "prompt": "p", "labels": ["x", "y"], "answer": "x"}
GENERATE = {"id": "a", "kind": "generate", "prompt": "p", "references": ["r"], "max_new_tokens": 4}
PERPLEXITY = {"id": "a", "kind": "perplexity", "text": "t"}
TRAFFIC = {"id": "a", "prompt": "p", "max_new_tokens": 4}

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text), max_size=3
).map(lambda turns: (*turns, Message("user", "and then?")))
prompts = text | messages
distinct = st.lists(text, min_size=2, max_size=4, unique=True).map(tuple)
positive = st.integers(1, 10_000)
quality_items = st.one_of(
    st.builds(GenerateItem, text, prompts, st.lists(text, min_size=1, max_size=3).map(tuple), positive),
    distinct.flatmap(lambda c: st.builds(ChooseItem, text, prompts, st.just(c), st.integers(0, len(c) - 1))),
    distinct.flatmap(lambda c: st.builds(ClassifyItem, text, prompts, st.just(c), st.sampled_from(c))),
    st.builds(PerplexityItem, text, text),
)
traffic_items = st.builds(TrafficItem, text, prompts, positive, st.none() | st.floats(0, 1e6))


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def folder(path: Path, header: str, **files: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "workload.toml").write_text(header, "utf-8")
    for name, records in files.items():
        lines(path / f"{name}.jsonl", *records)
    return path


@given(st.lists(quality_items, min_size=1, max_size=5, unique_by=lambda i: i.id))
def test_quality_items_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, items: list[QualityItem]
) -> None:
    file = lines(tmp_path_factory.mktemp("quality") / "items.jsonl", *map(to_record, items))
    found, digest = read_quality(file)
    assert list(found) == items
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


@given(st.lists(traffic_items, min_size=1, max_size=5, unique_by=lambda i: i.id))
def test_traffic_items_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, items: list[TrafficItem]
) -> None:
    file = lines(tmp_path_factory.mktemp("traffic") / "items.jsonl", *map(to_record, items))
    assert list(read_traffic(file)[0]) == items


def test_one_file_may_serve_as_traffic_and_quality_set(tmp_path: Path) -> None:
    header = HEADER + '[traffic]\nitems = "items.jsonl"\n[quality]\nitems = "items.jsonl"\n'
    workload = Workload.open(folder(tmp_path / "w", header, items=[GENERATE]))
    assert workload.traffic == (TrafficItem("a", "p", 4),)
    assert workload.quality == (GenerateItem("a", "p", ("r",), 4),)
    assert workload.metrics == {"generate": "token_f1"}


def test_hash_follows_content_and_not_names(tmp_path: Path) -> None:
    header = HEADER + '[quality]\nitems = "items.jsonl"\n'
    first = Workload.open(folder(tmp_path / "a", header, items=[CHOOSE]))
    renamed = Workload.open(folder(tmp_path / "b", header.replace('"test"', '"other"'), items=[CHOOSE]))
    changed = Workload.open(folder(tmp_path / "c", header, items=[CHOOSE | {"answer": 1}]))
    rejudged = header + '[quality.metrics]\nchoose = "accuracy_norm"\n'
    assert first.hash == renamed.hash
    assert (
        len({first.hash, changed.hash, Workload.open(folder(tmp_path / "d", rejudged, items=[CHOOSE])).hash})
        == 3
    )


QUALITY_FAULTS = [
    ([CHOOSE, CHOOSE], "line 2, item 'a': the id was used on line 1"),
    ([{**CHOOSE, "kind": "chose"}], "choose, classify, perplexity, retrieve, not \"chose\""),
    ([{**CHOOSE, "kind": ["choose"]}], "'kind' must be one of"),
    ([{k: v for k, v in CHOOSE.items() if k != "kind"}], "the field 'kind' is missing"),
    ([{k: v for k, v in CHOOSE.items() if k != "context"}], "the field 'context' is missing"),
    ([{k: v for k, v in CHOOSE.items() if k != "id"}], "the field 'id' is missing"),
    ([{**CHOOSE, "id": 7}], "'id' must be a text"),
    ([{**CHOOSE, "id": ""}], "'id' must be a text that is not empty"),
    ([{**CHOOSE, "answer": 2}], "'answer' must be the index of the right choice, 0 to 1, not 2"),
    ([{**CHOOSE, "answer": -1}], "0 to 1, not -1"),
    ([{**CHOOSE, "answer": True}], "0 to 1, not true"),
    ([{**CHOOSE, "answer": "x"}], '0 to 1, not "x"'),
    ([{**CHOOSE, "choices": ["x"]}], "'choices' needs at least 2 texts, not 1"),
    ([{**CHOOSE, "choices": ["x", "x"]}], "'choices' holds the same text twice"),
    ([{**CHOOSE, "choices": ["x", 3]}], "'choices' must be a list of texts"),
    ([{**CHOOSE, "choices": "xy"}], "'choices' must be a list of texts"),
    ([{**CHOOSE, "goal": "g"}], "unknown field 'goal'"),
    ([{**CLASSIFY, "answer": "z"}], "'answer' must be one of the labels x, y"),
    ([{**GENERATE, "references": []}], "'references' needs at least 1 text, not 0"),
    ([{**GENERATE, "max_new_tokens": 0}], "'max_new_tokens' must be a whole number of at least 1, not 0"),
    ([{**GENERATE, "max_new_tokens": 1.5}], "at least 1, not 1.5"),
    ([{**GENERATE, "prompt": []}], "the last message of 'prompt' must be the user's"),
    ([{**GENERATE, "prompt": [{"role": "robot", "content": "x"}]}], "must be a text, or a list of messages"),
    ([{**GENERATE, "prompt": [{"role": "assistant", "content": "x"}]}], "must be the user's"),
    ([{**PERPLEXITY, "text": "\ud800"}], "'text' holds half of a surrogate pair"),
    ([["not", "an", "object"]], "each line must be a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("records", "sentence"), QUALITY_FAULTS)
def test_faults_of_quality_items(tmp_path: Path, records: list[object], sentence: str) -> None:
    file = lines(tmp_path / "items.jsonl", *records)
    with pytest.raises(WorkloadError) as caught:
        read_quality(file)
    message = str(caught.value)
    assert sentence in message
    assert message.startswith(f"{file}, line {len(records)}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (CHOOSE, "traffic is of the kind 'generate', not \"choose\""),
        ({**TRAFFIC, "arrival_s": -1}, "'arrival_s' must be seconds from 0"),
        ({**TRAFFIC, "arrival_s": "soon"}, "'arrival_s' must be seconds from 0"),
        ({**TRAFFIC, "arrival_s": 10**400}, "'arrival_s' must be seconds from 0"),
        ({**TRAFFIC, "arrival_s": True}, "'arrival_s' must be seconds from 0"),
        ({**TRAFFIC, "max_tokens": 3}, "unknown field 'max_tokens'"),
    ],
)
def test_faults_of_traffic_items(tmp_path: Path, record: object, sentence: str) -> None:
    with pytest.raises(WorkloadError, match="line 1, item 'a'") as caught:
        read_traffic(lines(tmp_path / "items.jsonl", record))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "holds no items"),
        (b"\n  \n", "holds no items"),
        (b'{"id": "a", "prompt": "caf\xe9", "max_new_tokens": 1}\n', "line 1: not valid UTF-8 at byte 26"),
        (b'{"id": "a", "prompt": "p", "max_new_tokens": NaN}\n', "NaN is not a number JSON knows"),
        (b'{"id": "a", "prompt": "p", "max_new_tokens": 1, "arrival_s": 1e999}\n', "must be seconds"),
        (b'\n{"id": "a", \n', "line 2: not a JSON object"),
        (b"[" * 200_000, "line 1: not a JSON object: nested too deeply"),
    ],
)
def test_faults_of_lines(tmp_path: Path, raw: bytes, sentence: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(raw)
    with pytest.raises(WorkloadError) as caught:
        read_traffic(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_line_of_10_mb_is_refused_without_loading_it(tmp_path: Path) -> None:
    file = lines(tmp_path / "items.jsonl", TRAFFIC, {**TRAFFIC, "id": "b", "prompt": "x" * 10_000_000})
    tracemalloc.start()
    try:
        with pytest.raises(WorkloadError, match="line 2: longer than 1,000,000 bytes"):
            read_traffic(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_LINE_BYTES


HEADER_FAULTS = [
    ("schema = ", "is not valid TOML"),
    (HEADER, "holds no items: it needs a [traffic] or a [quality] section"),
    (HEADER.replace("schema = 1", "schema = 2"), "has schema 2, newer than this Negawatt reads (1)"),
    (HEADER.replace("schema = 1", ""), "'schema' must be a whole number"),
    (HEADER.replace('name = "test"', "") + "[traffic]\n", "'name' must be a text that is not empty"),
    (HEADER.replace('licence = "CC0-1.0"', "licence = 3") + "[traffic]\n", "'licence' must be a text"),
    (HEADER + 'licnce = "x"\n', "unknown field 'licnce'"),
    (HEADER + 'traffic = "items.jsonl"\n', "'traffic' must be a section, [traffic]"),
    (HEADER + "[traffic]\n", "'items' must be a text"),
    (HEADER + '[traffic]\nitems = "/etc/passwd"\n', "must be a file in the header's own folder"),
    (HEADER + '[traffic]\nitems = "../items.jsonl"\n', "must be a file in the header's own folder"),
    (HEADER + '[traffic]\nitems = "link.jsonl"\n', "must be a file in the header's own folder"),
    (HEADER + '[traffic]\nitems = "absent.jsonl"\n', "absent.jsonl cannot be read: No such file"),
    (HEADER + '[traffic]\nitems = "a\\u0000b"\n', "must be a file in the header's own folder"),
    (HEADER + f'[traffic]\nitems = "t.jsonl"\nsha256 = "{"0" * 64}"\n', "not the file its header promises"),
    (HEADER + '[traffic]\nitems = "t.jsonl"\nsha256 = "abc"\n', "must be 64 hexadecimal digits"),
    (HEADER + '[quality]\nitems = "q.jsonl"\nkinds = ["embed"]\n', "'kinds' must be a list out of"),
    (HEADER + '[quality]\nitems = "q.jsonl"\nkinds = ["classify"]\n', "promises classify, but"),
    (HEADER + '[quality]\nitems = "q.jsonl"\n[quality.metrics]\nchoose = "bleu"\n', "are judged by acc"),
    (HEADER + '[quality]\nitems = "q.jsonl"\n[quality.metrics]\nembed = "bleu"\n', "names the kind 'embed'"),
    (HEADER + "[quality]\nitems = 3\n", "'items' must be a text"),
    (HEADER + "x = " + "[" * 50_000, "is not valid TOML"),
    (HEADER.replace("schema = 1", "schema = " + "9" * 5000), "is not valid TOML"),
    (HEADER.replace("schema = 1", "schema = " + "9" * 4000), "has schema 999"),
    (HEADER + '[traffic]\nitems = "loop"\n', "must be a file in the header's own folder"),
    (HEADER + '[traffic]\nitems = "."\n', "cannot be read: Is a directory"),
    (HEADER + f'[traffic]\nitems = "{"x" * 5000}"\n', "name too long"),
    ("# " + "x" * 200_000, "too long for a header"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "sentence"), HEADER_FAULTS)
def test_faults_of_headers(tmp_path: Path, header: str, sentence: str) -> None:
    path = folder(tmp_path / "w", header, t=[TRAFFIC], q=[CHOOSE])
    lines(tmp_path / "items.jsonl", TRAFFIC)
    (path / "link.jsonl").symlink_to("../items.jsonl")
    (path / "loop").symlink_to("loop")
    with pytest.raises(WorkloadError) as caught:
        Workload.open(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_header_that_is_no_text(tmp_path: Path) -> None:
    path = folder(tmp_path / "w", "")
    (path / "workload.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(WorkloadError, match="not valid UTF-8 at byte 0"):
        Workload.open(path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no workload 'piqua': .*interactive-chat, offline, .*piqa"):
        Workload.open("piqua")
    with pytest.raises(UsageError, match=r"no folder with a workload\.toml"):
        Workload.open(tmp_path)
