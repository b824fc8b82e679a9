"""`Lexicon`: the tokens of a ``tokenizer.json``, and the same file cut down to some of them.

What a text is cut into does not change as long as every token that the cutting passes through stays:

* BPE joins, again and again, the neighbours whose merge comes first. The joins that make one token of a
  text lie within that token and happen in the order in which they happen when the token stands alone,
  since a join across its border would have swallowed the border. So it is enough to keep what each used
  token is made of, step by step; merges that never fire can go.
* WordPiece takes the longest piece that fits. Pieces that were never taken can go.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from negawatt.errors import ArtifactError

_ID_KEYS = ("_token_id", "_token_ids", "suppress_tokens")
"""How fields that hold token ids end, in config.json and generation_config.json."""


class Lexicon:
    """The vocabulary of a tokenizer.

    Attributes:
        definition: content of ``tokenizer.json``.
        ids: id by token, without added tokens that the model's own table lacks.
    """

    def __init__(self, definition: str) -> None:
        """Raises:
        ArtifactError: a kind of tokenizer that cannot be cut without changing what texts become.
        """
        self.definition: dict[str, Any] = json.loads(definition)
        model = self.definition["model"]
        self.kind = str(model.get("type", "BPE"))
        affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        if self.kind not in ("BPE", "WordPiece") or (self.kind == "BPE" and affixes):
            named = f"{self.kind} with word affixes" if self.kind == "BPE" else self.kind
            raise ArtifactError(
                f"the tokenizer is {named}; byte-level or SentencePiece BPE, and WordPiece, can be cut"
            )
        self.ids: dict[str, int] = model["vocab"]

    @cached_property
    def _merges(self) -> list[list[str]]:
        found = self.definition["model"].get("merges", [])
        return [m.split(" ", 1) if isinstance(m, str) else list(m) for m in found]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {(left, right): rank for rank, (left, right) in enumerate(self._merges)}

    # -- which tokens must stay ------------------------------------------------------------------

    def spelling(self) -> set[int]:
        """Tokens without which some text could no longer be spelled, and all added tokens."""
        model = self.definition["model"]
        found = {added["id"] for added in self.definition.get("added_tokens") or []}
        if model.get("unk_token") in self.ids:
            found.add(self.ids[model["unk_token"]])
        if model.get("byte_fallback"):
            return found | {self.ids[t] for b in range(256) if (t := f"<0x{b:02X}>") in self.ids}
        prefix = str(model.get("continuing_subword_prefix") or "") if self.kind == "WordPiece" else ""
        single = {i for token, i in self.ids.items() if len(token) == 1}
        if prefix:
            single |= {i for t, i in self.ids.items() if t.startswith(prefix) and len(t) == len(prefix) + 1}
        return found | single

    def closed(self, used: Iterable[int]) -> list[int]:
        """`used`, `spelling`, and whatever those tokens are made of; ids in ascending order."""
        kept = set(used) | self.spelling()
        if self.kind == "BPE":
            tokens = {i: token for token, i in self.ids.items()}
            for index in list(kept):
                kept |= {self.ids[part] for part in self._made_of(tokens.get(index, "")) if part in self.ids}
        return sorted(kept)

    def _made_of(self, token: str) -> set[str]:
        """Every piece that BPE makes on the way to a token."""
        parts, found = list(token), set(token)
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            ranked = [(self._ranks[pair], at) for at, pair in enumerate(pairs) if pair in self._ranks]
            if not ranked:
                break
            _, at = min(ranked)
            parts[at : at + 2] = ["".join(pairs[at])]
            found.add(parts[at])
        return found

    # -- the smaller file ------------------------------------------------------------------------

    def cut(self, kept: Sequence[int]) -> dict[str, Any]:
        """The definition with the tokens `kept` alone, renumbered in their order."""
        table = {old: new for new, old in enumerate(kept)}
        content = copy.deepcopy({k: v for k, v in self.definition.items() if k != "model"})
        content["model"] = {k: v for k, v in self.definition["model"].items() if k not in ("vocab", "merges")}
        content["model"]["vocab"] = {t: table[i] for t, i in self.ids.items() if i in table}
        if self.kind == "BPE":
            there = content["model"]["vocab"]
            content["model"]["merges"] = [
                [left, right] for left, right in self._merges
                if left in there and right in there and left + right in there
            ]  # fmt: skip
        for added in content.get("added_tokens") or []:
            added["id"] = table[added["id"]]
        if content.get("padding"):
            content["padding"]["pad_id"] = table[content["padding"]["pad_id"]]
        content["post_processor"] = _processor(content.get("post_processor"), table)
        return content


def _processor(part: Any, table: Mapping[int, int]) -> Any:
    """A post-processor with new ids: templates list them, the older kinds hold (token, id) pairs."""
    if isinstance(part, list):
        pair = len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int)
        return [part[0], table[part[1]]] if pair else [_processor(p, table) for p in part]
    if not isinstance(part, dict):
        return part
    return {
        key: [table[i] for i in value] if key == "ids" else _processor(value, table)
        for key, value in part.items()
    }


def named_ids(content: Mapping[str, Any]) -> set[int]:
    """Token ids that a configuration names."""
    found: set[int] = set()
    for key, value in content.items():
        if key.endswith(_ID_KEYS):
            for index in value if isinstance(value, list) else [value]:
                found |= {index} if isinstance(index, int) and index >= 0 else set()
    return found


def with_new_ids(content: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A configuration with every token id renumbered to its place in `kept`."""
    table = {old: new for new, old in enumerate(kept)}

    def new(value: Any) -> Any:
        if isinstance(value, list):
            return [new(v) for v in value]
        return table[value] if isinstance(value, int) and value >= 0 else value

    found = {key: new(value) if key.endswith(_ID_KEYS) else value for key, value in content.items()}
    if isinstance(decoder := content.get("added_tokens_decoder"), dict):
        found["added_tokens_decoder"] = {str(table[int(i)]): token for i, token in decoder.items()}
    return found
