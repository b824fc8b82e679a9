"""What ships, what is made from data of the catalogue, and the example in the documentation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from negawatt import catalog
from negawatt.errors import WorkloadError
from negawatt.workload import (
    ChooseItem,
    ClassifyItem,
    GenerateAsk,
    GenerateItem,
    ScoreAsk,
    TrafficItem,
    Workload,
    ask,
    prompt_text,
)
from negawatt.workload.datasets import DATASETS

DOCS = Path(__file__).parents[2] / "docs" / "workloads.md"


def answers(name: str) -> Counter[object]:
    catalog.pull(name)
    return Counter(i.answer for i in Workload.open(name).quality if isinstance(i, ChooseItem | ClassifyItem))


def test_interactive_chat_is_varied() -> None:
    workload = Workload.open("interactive-chat")
    lengths = [len(prompt_text(i.prompt)) for i in workload.traffic]
    assert len(workload.traffic) >= 48
    assert len({i.prompt for i in workload.traffic}) == len(workload.traffic)
    assert all(not isinstance(i.prompt, str) for i in workload.traffic)
    assert min(lengths) < 50
    assert max(lengths) > 1500
    assert all(64 <= i.max_new_tokens <= 128 for i in workload.traffic)
    assert not workload.quality
    assert workload.metric is None


def test_offline_needs_no_download(fresh_home: Path) -> None:
    workload = Workload.open("offline")
    assert Counter(i.kind for i in workload.quality) == {
        "choose": 60, "classify": 30, "generate": 20, "perplexity": 6,
    }  # fmt: skip
    assert workload.main_kind == "choose"
    assert workload.metric == "accuracy_norm"
    assert set(workload.traffic) <= set(Workload.open("interactive-chat").traffic)
    for kind in ("choose", "classify"):  # no answer can be guessed from its position
        positions = Counter(
            (len(i.choices), i.answer) if isinstance(i, ChooseItem) else (2, i.answer)
            for i in workload.of_kind(kind)
            if isinstance(i, ChooseItem | ClassifyItem)
        )
        assert max(positions.values()) - min(positions.values()) <= 8
    assert not fresh_home.exists()


def test_piqa_has_its_labels() -> None:
    assert answers("piqa") == {0: 754, 1: 746}
    workload = Workload.open("piqa")
    assert workload.metrics == {"choose": "accuracy"}
    assert ask(workload.quality[0]) == ScoreAsk(
        "Question: dresser\nAnswer:",
        (" replace drawer with bobby pin", " finish, woodgrain with  bobby pin"),
    )
    assert len(workload.hash) == 64


def test_openbookqa_has_its_labels() -> None:
    assert answers("openbookqa") == {0: 138, 1: 126, 2: 132, 3: 104}
    assert {len(i.choices) for i in Workload.open("openbookqa").quality if isinstance(i, ChooseItem)} == {4}


def test_vader_keeps_what_people_rated_clearly() -> None:
    assert answers("vader-movies") == {"positive": 4598, "negative": 4575}


def test_mails_are_asked_once_each() -> None:
    assert answers("spam") == {"wanted": 4102, "spam": 1730}
    prompts = [i.prompt for i in Workload.open("spam").quality if isinstance(i, ClassifyItem)]
    assert len(set(prompts)) == len(prompts)
    assert not any("Received:" in str(prompt) or "<html" in str(prompt).lower() for prompt in prompts[:500])


def test_passages_and_articles_fit_a_small_context() -> None:
    assert answers("boolq") == {0: 2033, 1: 1237}
    catalog.pull("xsum")
    articles = Workload.open("xsum").quality
    assert len(articles) == 1000
    assert max(len(prompt_text(i.prompt)) for i in articles if isinstance(i, GenerateItem)) < 1600


def test_chat_piqa_joins_two_workloads() -> None:
    catalog.pull("piqa")
    workload = Workload.open("chat-piqa")
    assert workload.traffic == Workload.open("interactive-chat").traffic
    assert workload.quality == Workload.open("piqa").quality
    assert set(workload.provenance) == {"traffic.jsonl", "piqa/validation.jsonl"}


def test_data_that_is_not_here_is_asked_for_by_name(fresh_home: Path) -> None:
    with pytest.raises(WorkloadError, match="run: negawatt data pull piqa"):
        Workload.open("chat-piqa")


@pytest.mark.parametrize("name", DATASETS)
def test_damaged_data_is_named(name: str, fresh_home: Path) -> None:
    """The catalogue checks lengths on finding an entry; a file of the right length may still be wrong."""
    source = catalog.find(name)
    assert source is None  # a fresh home
    place = catalog.folder(name)
    place.mkdir(parents=True)
    (place / "negawatt.json").write_text("{}")
    for file in catalog.entry(name).files:
        (place / file.name).write_bytes(b"x" * file.size_bytes)
    with pytest.raises(WorkloadError, match=f"is damaged .* pull {name} again"):
        Workload.open(name)


def test_names_all_open() -> None:
    for name in DATASETS:
        catalog.pull(name)
    for name in Workload.names():
        workload = Workload.open(name)
        assert workload.traffic or workload.quality
        assert {i.kind for i in workload.quality} == set(workload.metrics)


def test_asking() -> None:
    chat = Workload.open("interactive-chat").traffic[0]
    assert ask(chat) == GenerateAsk(chat.prompt, chat.max_new_tokens)
    kinds = {i.kind: ask(i) for i in Workload.open("offline").quality}
    assert isinstance(kinds["generate"], GenerateAsk)
    assert kinds["generate"].stop == ("\n",)
    assert isinstance(kinds["perplexity"], ScoreAsk)
    assert kinds["perplexity"].context == ""
    assert isinstance(kinds["classify"], ScoreAsk)
    assert kinds["classify"].continuations == (" negative", " positive")
    after_space = ask(ChooseItem("a", "The sky is ", ("blue", "green"), 0))
    assert isinstance(after_space, ScoreAsk)
    assert after_space.continuations == ("blue", "green")


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS.read_text("utf-8")
    for name, body in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(body, "utf-8")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, {})
    workload = Workload.open("support-desk")
    assert workload.kinds == ("generate", "choose", "classify", "perplexity")
    assert isinstance(workload.traffic[1], TrafficItem)
    assert workload.traffic[1].arrival_s == 1.5
    items = tmp_path / "support-desk" / "quality.jsonl"
    assert workload.provenance["quality.jsonl"] == hashlib.sha256(items.read_bytes()).hexdigest()
