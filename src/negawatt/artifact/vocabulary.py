"""From the vocabulary inside a GGUF file to a ``tokenizer.json``, and back.

Two families are known: byte-level BPE (``gpt2`` in GGUF), whose pre-tokenizer GGUF only names,
and SentencePiece (``llama`` in GGUF), which GGUF stores as scores and ``tokenizer.json`` as
merges.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from negawatt.errors import ArtifactError

if TYPE_CHECKING:
    from negawatt.artifact.tokenizer import Tokenizer

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


def scores_from_merges(
    vocab: Mapping[str, int], merges: Iterable[Sequence[str]], n_tokens: int
) -> list[float]:
    """Scores under which SentencePiece joins in the order of `merges`; the inverse of the above.

    A piece scores minus the rank of the first merge that makes it; what no merge makes (bytes,
    control tokens) scores below all.
    """
    scores = [-1e6] * n_tokens
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


# -- back to GGUF --------------------------------------------------------------------------------


def gguf_fields(tokenizer: Tokenizer, n_rows: int) -> dict[str, Any]:
    """GGUF metadata for a tokenizer; the inverse of `tokenizer_json`.

    Args:
        tokenizer: the checkpoint's tokenizer.
        n_rows: rows of the embedding; rows beyond the vocabulary get unused names.

    Raises:
        ArtifactError: the tokenizer is not BPE, or its pre-tokenizer has no name in GGUF.
    """
    definition = json.loads(tokenizer.definition)
    model = definition["model"]
    if model.get("type", "BPE") != "BPE":
        raise ArtifactError(f"the checkpoint's tokenizer is {model['type']}; GGUF here needs BPE")
    tokens, types = _tokens(definition, n_rows)
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    fields: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": tokenizer.encode("", add_special=True)[:1] == [tokenizer.bos_id],
    }
    if model.get("byte_fallback"):
        fields["tokenizer.ggml.model"] = "llama"
        fields["tokenizer.ggml.pre"] = "default"
        fields["tokenizer.ggml.scores"] = scores_from_merges(model["vocab"], merges, len(tokens))
        fields["tokenizer.ggml.add_space_prefix"] = "Prepend" in json.dumps(definition["normalizer"])
    else:
        fields["tokenizer.ggml.model"] = "gpt2"
        fields["tokenizer.ggml.pre"] = _pre_name(definition["pre_tokenizer"])
        fields["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
    named = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "unknown": tokenizer.unk_id,
        "padding": tokenizer.pad_id,
    }
    fields |= {f"tokenizer.ggml.{name}_token_id": index for name, index in named.items() if index is not None}
    if tokenizer.chat_template:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields


def _tokens(definition: Mapping[str, Any], n_rows: int) -> tuple[list[str], list[int]]:
    model = definition["model"]
    tokens = [f"[PAD{i}]" for i in range(n_rows)]
    types = [UNUSED] * n_rows
    bytes_ = {f"<0x{b:02X}>" for b in range(256)} if model.get("byte_fallback") else set()
    for token, index in model["vocab"].items():
        tokens[index] = token
        types[index] = BYTE if token in bytes_ else NORMAL
    for added in definition["added_tokens"]:
        index = added["id"]
        tokens[index] = added["content"]
        types[index] = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == model.get("unk_token"):
            types[index] = UNKNOWN
    return tokens, types


def _pre_name(pre_tokenizer: Any) -> str:
    """GGUF's name of a pre-tokenizer; offsets are trimmed or not without any effect on ids."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: plain(v) for k, v in part.items() if k != "trim_offsets"}
        return [plain(p) for p in part] if isinstance(part, list) else part

    for name, known in PRE_TOKENIZERS.items():
        if plain(pre_tokenizer) == plain(known):
            return name
    raise ArtifactError(
        f"the checkpoint's pre-tokenizer has no name in GGUF; known are {', '.join(PRE_TOKENIZERS)}"
    )
