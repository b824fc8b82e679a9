"""Quality sets made from data of the catalogue: questions, mails, snippets of reviews, news."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from negawatt import catalog
from negawatt.errors import WorkloadError
from negawatt.workload.corpus import Corpus, Document
from negawatt.workload.items import ChooseItem, ClassifyItem, GenerateItem, Message, QualityItem, RetrieveItem
from negawatt.workload.mails import spam_items

LEAST_VALENCE = 1.0
"""Snippets rated closer to neutral than this, on VADER's scale from −4 to 4, are left out."""

ARTICLE_CHARACTERS = 1500
"""Of an article, from its beginning; news tells first what matters."""
SUMMARY_TOKENS = 40
PASSAGE_CHARACTERS = 500
"""The same where articles are searched for: a passage that small encoders read whole."""

_OPTION = re.compile(r"(?:^|\n)([A-Z])\. ")


@dataclass(frozen=True, slots=True)
class DataSet:
    """How to make a quality set from one file of a catalogue entry of the same name.

    Attributes:
        file: name of the file in the entry's folder.
        items: makes the items out of the file's text.
    """

    file: str
    items: Callable[[str], tuple[QualityItem, ...]]
    entry: str = ""
    """The entry's name, where it is another."""


def piqa_items(text: str) -> tuple[QualityItem, ...]:
    """PIQA (Bisk et al., AAAI 2020) in the form of lm-evaluation-harness: question, answer, choice."""
    return _options_items("piqa", text, lambda goal: f"Question: {goal}\nAnswer:")


def openbookqa_items(text: str) -> tuple[QualityItem, ...]:
    """OpenBookQA (Mihaylov et al., EMNLP 2018): the stem and, in lm-evaluation-harness's form, its ending."""
    return _options_items("openbookqa", text, lambda stem: stem)


def vader_items(text: str) -> tuple[QualityItem, ...]:
    """Film review snippets that people rated on average at least `LEAST_VALENCE` from neutral.

    VADER: Hutto and Gilbert, ICWSM 2014. Lines hold id, mean rating and snippet, tab-separated.
    """
    items = []
    for line in text.splitlines():
        number, valence, snippet = line.split("\t")
        if abs(float(valence)) >= LEAST_VALENCE:
            answer = "positive" if float(valence) > 0 else "negative"
            prompt = f"Review: {snippet.strip()}\nSentiment:"
            items.append(ClassifyItem(f"vader-{number}", prompt, ("negative", "positive"), answer))
    return tuple(items)


def boolq_items(text: str) -> tuple[QualityItem, ...]:
    """BoolQ (Clark et al., NAACL 2019) in the form of lm-evaluation-harness: passage, question, yes or no."""
    items = []
    for number, record in enumerate(map(json.loads, text.splitlines()), start=1):
        context = f"{record['passage'].strip()}\nQuestion: {record['question'].strip()}?\nAnswer:"
        right = {"True": 0, "False": 1}[str(record["answer"])]
        items.append(ChooseItem(f"boolq-{number}", context, ("yes", "no"), right))
    return tuple(items)


def xsum_items(text: str) -> tuple[QualityItem, ...]:
    """XSum (Narayan et al., EMNLP 2018): the beginning of a news article, to be told in one sentence."""
    items = []
    for record in map(json.loads, text.splitlines()):
        article = record["document"].strip()[:ARTICLE_CHARACTERS]
        asked = Message("user", f"Summarise this article in one sentence.\n\n{article}")
        answer = record["summary"].strip()
        items.append(GenerateItem(f"xsum-{record['id']}", (asked,), (answer,), SUMMARY_TOKENS))
    return tuple(items)


def xsum_search_items(text: str) -> tuple[QualityItem, ...]:
    """XSum turned round: which of all articles does a sentence sum up? Articles by their beginnings."""
    records = [json.loads(line) for line in text.splitlines()]
    names = [f"xsum-{record['id']}" for record in records]
    passages = [record["document"].strip()[:PASSAGE_CHARACTERS] for record in records]
    corpus = Corpus(tuple(map(Document, names, passages)), queries_per_document=1.0)
    return tuple(
        RetrieveItem(name, record["summary"].strip(), (name,), corpus)
        for name, record in zip(names, records, strict=True)
    )


DATASETS = {
    "boolq": DataSet("dev.jsonl", boolq_items),
    "piqa": DataSet("validation.jsonl", piqa_items),
    "openbookqa": DataSet("test.jsonl", openbookqa_items),
    "spam": DataSet("mails.json", spam_items),
    "vader-movies": DataSet("movieReviewSnippets_GroundTruth.txt", vader_items),
    "xsum": DataSet("test.jsonl", xsum_items),
}
SEARCHES = {"xsum-search": DataSet("test.jsonl", xsum_search_items, "xsum")}
"""The same, of entries that others are made from too."""
NAMED = {**DATASETS, **SEARCHES}


def entry_of(name: str) -> str:
    """The catalogue's entry that one of `NAMED` is made from."""
    return NAMED[name].entry or name


def load(name: str) -> tuple[tuple[QualityItem, ...], dict[str, str]]:
    """Items of one of `NAMED`, and the sha256 of the file that they come from.

    Raises:
        WorkloadError: the data is not on this machine, or is damaged.
    """
    data_set, entry = NAMED[name], entry_of(name)
    folder = catalog.find(entry)
    if folder is None:
        raise WorkloadError(f"the data of {name} is not on this machine; run: negawatt data pull {entry}")
    file = folder / data_set.file
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return _items(data_set, file), {f"{entry}/{data_set.file}": digest}


def _items(data_set: DataSet, file: Path) -> tuple[QualityItem, ...]:
    try:
        return data_set.items(file.read_text("utf-8"))
    except (ValueError, KeyError, TypeError, OSError) as exc:
        raise WorkloadError(
            f"{file} is damaged ({exc}); remove {file.parent} and pull {file.parent.name} again"
        ) from exc


def _options_items(name: str, text: str, context: Callable[[str], str]) -> tuple[QualityItem, ...]:
    """Questions whose options stand in one text, a letter before each, and whose answer repeats one."""
    items = []
    for number, line in enumerate(text.splitlines(), start=1):
        record = json.loads(line)
        letters_and_options = _OPTION.split(record["options"])[1:]
        options = dict(zip(letters_and_options[::2], letters_and_options[1::2], strict=True))
        letter, _, answer = record["answer"].partition(". ")
        if len(options) < 2 or options.get(letter, "").strip() != answer.strip():
            raise ValueError(f"line {number}: the answer {record['answer'][:40]!r} is none of the options")
        choices = tuple(option.strip() for option in options.values())
        question = context(record["question"].strip())
        items.append(ChooseItem(f"{name}-{number}", question, choices, list(options).index(letter)))
    return tuple(items)
