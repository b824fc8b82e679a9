"""The tokenizer agrees with llama.cpp's own, token for token, and streams without losing a byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llamacpp_reference import Reference

from negawatt import catalog
from negawatt.artifact import Artifact, Tokenizer
from negawatt.artifact.vocabulary import merges_from_scores, scores_from_merges
from negawatt.errors import ArtifactError

Encode = Callable[..., list[int]]

TEXTS = [
    "Hello 12345 world", "x=1+22*333", "3.14159", "5,678,901.23", "it's we'll I'VE they'd DON'T ''s 'S",
    "  leading", "trailing   ", "\n", "   ", "tabs\t\tand   spaces    \n\n\n  indented\n", "\r\n\r\nwindows",
    "    def f(x):\n        return x ** 2  # comment\n", "_foo_bar __init__", "http://a.b/c?d=e&f=g#h",
    "naïve café — “quotes” …", "Zürich's ÄÖÜ ß ﬁ ſ", "e\u0301 combining", "a\u00a0b\u3000c\u2028d\u0085e",
    "日本語のテキスト", "Привет, мир!", "العربية 123", "हिन्दी १२३", "한국어 ㄱㄴ", "ไทย ภาษา", "²³½ ⅷ ٣٤ 𝟙𝟚",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷 done", "\x00\x01control", "ab\u200dcd\ufeff", "x" * 300, " " * 50 + "x",
    "<|im_start|>user\nhi<|im_end|>", "a<|endoftext|>b", "<h1>title</h1>",
]  # fmt: skip
POOL = "abcXYZ 019  \n\t.,'’\"éß中日한😀🏽²½٣_-=+(){}<>|\u00a0\u200b"


def varied_texts() -> list[str]:
    chance = random.Random(0)
    questions = (catalog.pull("piqa") / "validation.jsonl").read_text("utf-8").splitlines()[:200]
    asked = [f"Question: {q['question']}\nAnswer: {q['answer']}" for q in map(json.loads, questions)]
    noise = ["".join(chance.choices(POOL, k=chance.randint(1, 60))) for _ in range(200)]
    return TEXTS + asked + noise


@pytest.fixture(scope="module")
def reference(model: Artifact) -> Iterator[Encode]:
    """llama.cpp's tokenizer for the same file."""
    with Reference(model.gguf()) as running:
        yield running.encode


def test_token_for_token_as_llama_cpp(model: Artifact, reference: Encode) -> None:
    tokenizer = model.tokenizer
    for text in varied_texts():
        assert tokenizer.encode(text) == reference(text), text
        assert tokenizer.encode(text, parse_special=False) == reference(text, parse_special=False), text
        assert tokenizer.encode(text, add_special=True) == reference(text, add_special=True), text


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_as_llama_cpp(model: Artifact, reference: Encode, text: str) -> None:
    assert model.tokenizer.encode(text, parse_special=False) == reference(text, parse_special=False)


# This model's vocabulary lacks a few control characters and the bytes of U+40000 and above.
SPELLABLE = st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=("Cs", "Cc")))


@settings(max_examples=200, deadline=None)
@given(text=SPELLABLE)
def test_there_and_back(model: Artifact, text: str) -> None:
    assert model.tokenizer.decode(model.tokenizer.encode(text, parse_special=False)) == text


@settings(max_examples=100, deadline=None)
@given(text=SPELLABLE)
def test_streaming_is_decoding(model: Artifact, text: str) -> None:
    stream = model.tokenizer.stream()
    pieces = [stream.push(token) for token in model.tokenizer.encode(text, parse_special=False)]
    assert "".join(pieces) + stream.finish() == text


def test_streaming_never_shows_half_a_character(model: Artifact) -> None:
    tokenizer = model.tokenizer
    ids = tokenizer.encode("🏳️‍🌈")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert "\ufffd" not in "".join(map(stream.push, ids))
    cut = tokenizer.stream()
    assert (cut.push(ids[0]), cut.finish()) == ("", "\ufffd")


def test_digits_stand_alone(model: Artifact) -> None:
    tokenizer = model.tokenizer
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("2026")] == [b"2", b"0", b"2", b"6"]


def test_control_tokens(model: Artifact) -> None:
    tokenizer = model.tokenizer
    assert {tokenizer.decode([i], skip_special=False) for i in tokenizer.eos_ids} == {
        "<|im_end|>",
        "<|endoftext|>",
    }
    assert tokenizer.decode(tokenizer.eos_ids) == ""
    assert tokenizer.stream().push(min(tokenizer.eos_ids)) == ""
    assert tokenizer.vocab_size == model.shape.vocab
    spelled = tokenizer.encode("<|im_end|>", parse_special=False)
    assert tokenizer.eos_ids.isdisjoint(spelled)
    assert tokenizer.decode(spelled) == "<|im_end|>"


def test_chat_follows_the_models_own_template(model: Artifact) -> None:
    tokenizer = model.tokenizer
    ids = tokenizer.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    text = tokenizer.decode(ids, skip_special=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    closed = tokenizer.chat([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
    assert tokenizer.decode(closed, skip_special=False).endswith("Hi<|im_end|>\n")


def with_template(model: Artifact, template: str) -> Tokenizer:
    return Tokenizer(model.tokenizer.definition, chat_template=template)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("", "has no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{% for %}", "refuses these messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses these messages: access to attribute"),
        ("{{ messages.append(1) }}", "refuses these messages"),
    ],
)
def test_templates_that_fail(model: Artifact, template: str, sentence: str) -> None:
    with pytest.raises(ArtifactError, match=sentence):
        with_template(model, template).chat([{"role": "user", "content": "Hi"}])


def test_a_checkpoint_tokenizes_as_its_gguf(model: Artifact) -> None:
    converted = Artifact.open(model.checkpoint()).tokenizer
    original = model.tokenizer
    assert (converted.eos_ids, converted.bos_id, converted.pad_id) == (
        original.eos_ids, original.bos_id, original.pad_id,
    )  # fmt: skip
    for text in TEXTS:
        assert converted.encode(text) == original.encode(text)
    message = [{"role": "user", "content": "Hi"}]
    assert converted.chat(message) == original.chat(message)


def test_transformers_reads_the_same_tokens(model: Artifact) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(model.checkpoint())
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == model.tokenizer.encode(text)
    message = [{"role": "user", "content": "Hi"}]
    rendered = theirs.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert theirs(rendered).input_ids == model.tokenizer.chat(message)


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    from negawatt.artifact.vocabulary import tokenizer_json

    fields = {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "strange"}
    with pytest.raises(ArtifactError, match="pre-tokenizer 'strange'; known are gpt-2, smollm"):
        tokenizer_json(fields)
    with pytest.raises(ArtifactError, match="'t5' vocabulary"):
        tokenizer_json({**fields, "tokenizer.ggml.model": "t5"})


@given(st.lists(st.text("abc", min_size=2, max_size=4), unique=True, max_size=12))
def test_scores_and_merges_say_the_same(pieces: list[str]) -> None:
    vocab = {token: i for i, token in enumerate([*"abc", *pieces])}
    scores = [-float(i) for i in range(len(vocab))]
    merges = merges_from_scores(vocab, scores)
    assert merges_from_scores(vocab, scores_from_merges(vocab, merges, len(vocab))) == merges


def test_a_checkpoint_without_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json"):
        Tokenizer.from_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not JSON"):
        Tokenizer.from_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(ArtifactError, match="the tokenizer definition cannot be read"):
        Tokenizer.from_checkpoint(tmp_path)
