"""From the vocabulary inside a GGUF file to a ``tokenizer.json``, and back.

Two families are known: byte-level BPE (``gpt2`` in GGUF), whose pre-tokenizer GGUF only names,
and SentencePiece (``llama`` in GGUF), which GGUF stores as scores and ``tokenizer.json`` as
merges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from negawatt.errors import ArtifactError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of GGUF."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(False)]}


_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _byte_level(True),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(True)]},
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
}
"""What each pre-tokenizer name of GGUF means, as ``tokenizer.json`` spells it."""


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``tokenizer.json`` that does what llama.cpp does with this GGUF metadata.

    Raises:
        ArtifactError: no vocabulary, or a family or pre-tokenizer that is not known.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    family = metadata.get("tokenizer.ggml.model")
    if not tokens:
        raise ArtifactError("the GGUF file holds no vocabulary")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if family == "gpt2":
        parts = _bpe(metadata, tokens)
    elif family == "llama":
        parts = _sentencepiece(metadata, tokens, types)
    else:
        raise ArtifactError(f"the GGUF file has a {family!r} vocabulary; 'gpt2' and 'llama' are known")
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **parts,
        "post_processor": _post_processor(metadata, tokens, family),
    }


def _bpe(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    pre = metadata.get("tokenizer.ggml.pre", "")
    if pre not in PRE_TOKENIZERS:
        raise ArtifactError(
            f"the GGUF file names the pre-tokenizer {pre!r}; known are {', '.join(PRE_TOKENIZERS)}"
        )
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre == "llama-bpe",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ", 1) for merge in metadata.get("tokenizer.ggml.merges", [])],
    }
    return {
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "decoder": _byte_level(True),
        "model": model,
    }


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> dict[str, Any]:
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    vocab = {token: i for i, token in enumerate(tokens)}
    mergeable = {t: i for t, i in vocab.items() if types[i] in (NORMAL, USER_DEFINED, UNUSED)}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges_from_scores(mergeable, metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)),
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": model,
    }


def merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """BPE merges that reproduce SentencePiece's rule: join the pair whose union scores highest.

    Args:
        vocab: pieces that may be joined or be the result of joining, with their ids.
        scores: score by id.

    Returns:
        ``[left, right]`` pairs, the first to be applied first. Every split of a piece into two
        pieces is listed, since which halves meet first depends on the text.
    """
    ranked = []
    for piece, index in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[index], index, vocab[left], left, right))
    ranked.sort()
    return [[left, right] for *_, left, right in ranked]


def scores_from_merges(vocab: Mapping[str, int], merges: Iterable[Sequence[str]]) -> list[float]:
    """Scores under which SentencePiece joins in the order of `merges`; the inverse of the above.

    A piece scores minus the rank of the first merge that makes it; what no merge makes (bytes,
    control tokens) scores below all.
    """
    scores = [-1e6] * len(vocab)
    for rank, (left, right) in enumerate(merges):
        index = vocab.get(left + right)
        if index is not None and scores[index] == -1e6:
            scores[index] = -float(rank + 1)
    return scores


def _post_processor(metadata: Mapping[str, Any], tokens: Sequence[str], family: str) -> dict[str, Any] | None:
    """Begin- and end-of-text tokens around a text, where the file asks for them."""
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", family == "llama")
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    bos, eos = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    before = [bos] if add_bos and bos is not None else []
    after = [eos] if add_eos and eos is not None else []
    if not before and not after:
        return None

    def template(sequence: str) -> list[dict[str, Any]]:
        def special(i: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": tokens[i], "type_id": 0}}

        return [*map(special, before), {"Sequence": {"id": sequence, "type_id": 0}}, *map(special, after)]

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A") + template("B"),
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in before + after
        },
    }
