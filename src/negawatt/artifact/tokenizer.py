"""`Tokenizer`: text to token ids and back, the same for every engine, without torch."""

from __future__ import annotations

import codecs
import copy
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from negawatt.artifact import chat_template, vocabulary
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.safetensors_file import read_json
from negawatt.errors import ArtifactError

END_OF_GENERATION = frozenset({
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|return|>",
    "<|call|>", "<end_of_turn>", "</s>", "<eos>", "<EOT>", "[EOS]", "<|endofturn|>",
})  # fmt: skip
"""Control tokens that end an answer, whichever of them a file names as its end-of-text token."""


class Tokenizer:
    """A model's tokenizer. Make one with `from_gguf` or `from_checkpoint`.

    Attributes:
        definition: the text of its ``tokenizer.json``.
        eos_ids: every token that ends an answer.
        eos_id: the one that the model's files name first, or None.
        pad_id: padding token, or None.
        unk_id: token for what cannot be spelled, or None.
        bos_id: begin-of-text token, or None.
        vocab_size: number of tokens, added ones included.
        chat_template: the model's own Jinja template, or empty.
    """

    def __init__(
        self,
        definition: str,
        *,
        eos: Sequence[int] = (),
        bos_id: int | None = None,
        chat_template: str = "",
        pad_id: int | None = None,
        unk_id: int | None = None,
    ) -> None:
        """Args:
        definition: the text of a ``tokenizer.json``.
        eos: end-of-text tokens that the model's files name.
        bos_id: begin-of-text token.
        chat_template: Jinja template; see `chat`.
        pad_id: padding token.
        unk_id: token for what cannot be spelled.

        Raises:
            ArtifactError: the definition cannot be read.
        """
        self.definition = definition
        self._tokenizer = _load(definition)
        self._added = self._tokenizer.get_added_tokens_decoder()
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        ending = {i for i, token in self._added.items() if token.content in END_OF_GENERATION}
        self.eos_ids = frozenset(ending | set(eos))
        self.bos_id, self.pad_id, self.unk_id = bos_id, pad_id, unk_id
        self.chat_template = chat_template
        self.eos_id = next(iter(eos), None)
        self._spelling = _spelling(json.loads(definition).get("decoder"))

    # -- making one ------------------------------------------------------------------------------

    @classmethod
    def from_gguf(cls, gguf: GgufFile) -> Tokenizer:
        """From the vocabulary inside a GGUF file.

        Raises:
            ArtifactError: there is none, or one of a kind that is not known.
        """
        data = gguf.metadata
        try:
            definition = vocabulary.tokenizer_json(data)
        except ArtifactError as exc:
            raise ArtifactError(f"{gguf.path}: {exc}") from exc
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            raise ArtifactError(f"{gguf.path}: its vocabulary is damaged ({exc})") from exc
        ids = [data.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        return cls(
            json.dumps(definition, ensure_ascii=False),
            eos=[i for i in ids if i is not None],
            bos_id=data.get("tokenizer.ggml.bos_token_id"),
            pad_id=data.get("tokenizer.ggml.padding_token_id"),
            unk_id=data.get("tokenizer.ggml.unknown_token_id"),
            chat_template=str(data.get("tokenizer.chat_template", "")),
        )

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Tokenizer:
        """From ``tokenizer.json`` and the configuration files beside it.

        Raises:
            ArtifactError: there is no ``tokenizer.json``, or it cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ArtifactError(
                f"{folder} holds no tokenizer.json, the only kind of tokenizer file read here"
            )
        content = read_json(path)
        config, settings, generation = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in ("config.json", "tokenizer_config.json", "generation_config.json")
        )
        ids = {str(t["content"]): int(t["id"]) for t in content.get("added_tokens", [])}

        def named(key: str) -> int | None:
            token = settings.get(key)
            return ids.get(token["content"] if isinstance(token, dict) else str(token))

        eos: list[int] = []
        for value in (named("eos_token"), generation.get("eos_token_id"), config.get("eos_token_id")):
            eos += [
                i for i in (value if isinstance(value, list) else [value]) if i is not None and i not in eos
            ]
        bos = named("bos_token")
        return cls(
            path.read_text("utf-8"),
            eos=eos,
            bos_id=config.get("bos_token_id") if bos is None else bos,
            pad_id=named("pad_token"),
            unk_id=named("unk_token"),
            chat_template=_template_of(folder, settings),
        )

    # -- text to tokens --------------------------------------------------------------------------

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            add_special: put the begin- and end-of-text tokens around it that the model expects.
            parse_special: read ``<|im_end|>`` and the like as control tokens; False spells them
                out, which text from untrusted people needs.
        """
        tokenizer = self._tokenizer if parse_special else self._literal
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    @functools.cached_property
    def _literal(self) -> Any:
        tokenizer = _load(self.definition)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def with_template(self, chat_template: str) -> Tokenizer:
        """The same with another chat template."""
        found = copy.copy(self)
        found.chat_template = chat_template
        return found

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        return chat_template.reads(self.chat_template, "tools")

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation in the model's own template.

        Args:
            messages: ``{"role": …, "content": …}``, oldest first.
            tools: that the model may call, as ``{"type": "function", "function": …}``.
            add_generation_prompt: end with the opening of the assistant's answer.

        Raises:
            ArtifactError: the model has no template, or the template refuses these messages.
        """
        text = chat_template.render(
            self.chat_template,
            messages,
            tools=[dict(tool) for tool in tools] or None,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._text_of(self.bos_id),
            eos_token=self._text_of(self.eos_id),
        )
        return self.encode(text)

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else str(self._tokenizer.id_to_token(token) or "")

    # -- tokens to text --------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 come out as U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for within a text.

        Raises:
            ArtifactError: the model's tokens are not pieces of a byte string (WordPiece).
        """
        if (added := self._added.get(token)) is not None:
            return str(added.content).encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._spelling == "byte-level":
            return bytes(_BYTES[c] for c in piece)
        if self._spelling == "byte-fallback":
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes([int(piece[3:5], 16)])
            return str(piece).replace("▁", " ").encode()
        raise ArtifactError("this tokenizer's tokens are not pieces of a byte string")

    def stream(self) -> TokenStream:
        """A decoder for tokens that arrive one by one."""
        return TokenStream(self)


class TokenStream:
    """Turns tokens into text as they arrive, holding back bytes of a character not yet complete.

    What `push` and `finish` return, joined, is the text of all tokens; control tokens are silent.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that is now certain; may be empty."""
        added = self._tokenizer._added.get(token)
        if added is not None and added.special:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What was held back: U+FFFD when the last character is incomplete."""
        return self._utf8.decode(b"", final=True)


def _load(definition: str) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(definition)
    except Exception as exc:  # the Rust library raises nothing more precise
        raise ArtifactError(f"the tokenizer definition cannot be read: {exc}") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template_of(folder: Path, settings: Mapping[str, Any]) -> str:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text("utf-8")
    template = settings.get("chat_template") or ""
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t.get("name") == "default"), "")
    return str(template)


def _spelling(decoder: Mapping[str, Any] | None) -> str:
    """How the vocabulary writes bytes: ``byte-level``, ``byte-fallback`` or ``other``."""
    kinds = {d["type"] for d in [decoder or {"type": ""}, *(decoder or {}).get("decoders", [])]}
    return "byte-level" if "ByteLevel" in kinds else "byte-fallback" if "ByteFallback" in kinds else "other"


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable Latin-1 as itself, the rest
    from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()
