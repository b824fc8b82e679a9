"""`Calibration`: the text that passes are calibrated on, and the text held out to judge them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.compress.labelled import OFFSET_POSITIONS, Labelled
from negawatt.compress.source import Source
from negawatt.errors import UsageError, WorkloadError
from negawatt.workload import Workload
from negawatt.workload.items import ChooseItem, PerplexityItem, Prompt, RetrieveItem, queries_among

if TYPE_CHECKING:
    import torch

    from negawatt.compress.technique import Progress

SELF = "self"
"""The reference that means: text that the model writes itself."""

MAX_BYTES = 20_000_000
FEWEST_BYTES_PER_TOKEN = 1.5
"""Below this a tokenizer spells a text out byte by byte; English has 4, any language it knows over 2."""
MOST_UNKNOWN = 0.05


@dataclass(frozen=True)
class Calibration:
    """Windows of tokens, none of them in both parts.

    Attributes:
        origin: where the text comes from: ``file:NAME``, ``workload:NAME`` or ``self``.
        windows: to calibrate on, int64, shape ``(n, length)``.
        heldout: to judge on, of the same kind.
        questions: labelled texts to judge classifiers on; None where there are none.
    """

    origin: str
    windows: torch.Tensor
    heldout: torch.Tensor
    questions: Labelled | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash over all token ids: what a replay must have again."""
        digest = hashlib.sha256()
        for part in (self.windows, self.heldout):
            digest.update(f"{tuple(part.shape)}\n".encode() + part.numpy().astype("<i8").tobytes())
        if self.questions is not None:
            digest.update(self.questions.sha256.encode())
        return digest.hexdigest()

    def renumbered(self, kept: Sequence[int]) -> Calibration:
        """The same text for a model that has only the tokens `kept`, in that order."""
        import torch

        table = torch.full((max(kept) + 1,), -1, dtype=torch.int64)
        table[torch.tensor(kept)] = torch.arange(len(kept))
        return Calibration(self.origin, table[self.windows], table[self.heldout], self.questions)

    def to_json(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "sha256": self.sha256,
            "windows": len(self.windows),
            "heldout": len(self.heldout),
            "length": int(self.heldout.shape[1]),
            "questions": 0 if self.questions is None else len(self.questions.texts),
        }


def calibration(
    source: Source, reference: str, *, windows: int, heldout: int, length: int, seed: int, progress: Progress
) -> Calibration:
    """Read, or let the model write, the text that `reference` names.

    The windows are spread evenly over the text, and those held out evenly among them. Where the text
    holds fewer than asked for, both parts shrink alike.

    Args:
        source: the model; its tokenizer cuts the text.
        reference: a text file, the name or folder of a workload, or ``self``.
        windows: to calibrate on; may be 0.
        heldout: to judge on.
        length: tokens in a window; cut to the model's longest context.

    Raises:
        UsageError: there is no such file or workload.
        WorkloadError: the text holds too few tokens, or is in a language the tokenizer does not know.
    """
    import torch

    longest = source.config.get("max_position_embeddings") or source.config.get("n_positions") or length
    length = min(length, int(longest) - (2 if source.config.get("model_type") in OFFSET_POSITIONS else 0))
    if reference == SELF:
        from negawatt.compress.writing import written

        rows = written(source, windows + heldout, length, seed, progress)
        return Calibration(SELF, *_dealt(rows, windows, heldout))
    origin, tokens, n_bytes = _read(source, reference, seed)
    before, after = _frame(source)
    body = length - len(before) - len(after)
    n = len(tokens) // body
    if n < (2 if windows else 1):
        raise WorkloadError(
            f"{reference} holds {len(tokens):,} tokens, and at least {2 if windows else 1} windows of "
            f"{length} are needed; give more text, or shorter windows"
        )
    _require_known_language(source, reference, tokens, n_bytes)
    if n < windows + heldout:
        heldout = max(1, round(n * heldout / (windows + heldout))) if windows else n
        windows = n - heldout
    chosen = [i * n // (windows + heldout) for i in range(windows + heldout)]
    rows = torch.tensor([[*before, *tokens[i * body : (i + 1) * body], *after] for i in chosen])
    return Calibration(origin, *_dealt(rows, windows, heldout))


def _dealt(rows: torch.Tensor, windows: int, heldout: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` in two parts, the held-out ones evenly spread."""
    n = windows + heldout
    held = {(2 * i + 1) * n // (2 * heldout) for i in range(heldout)}
    return rows[[i for i in range(n) if i not in held]], rows[sorted(held)]


def _frame(source: Source) -> tuple[list[int], list[int]]:
    """The tokens that the model expects before and after any text."""
    around = source.tokenizer.encode("", add_special=True)
    return around[:1], around[1:]


@dataclass(frozen=True, slots=True)
class Piece:
    """A text, and whether it holds control tokens from the model's own chat template."""

    text: str
    is_chat: bool = False


def pieces_of(source: Source, reference: str, seed: int) -> tuple[str, list[Piece], Workload | None]:
    """Where a text comes from, the text, and the whole workload where it is one.

    Raises:
        UsageError: there is no such file or workload.
        WorkloadError: the file is not UTF-8.
    """
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix != ".toml":
        return f"file:{path.name}", [Piece(_text_of(path))], None
    try:
        workload = Workload.open(reference)
    except UsageError as exc:
        raise UsageError(f"{reference} is no text file, no workload, and not {SELF!r}: {exc}") from exc
    return f"workload:{workload.name}", list(_texts(source, workload, seed)), workload


def _read(source: Source, reference: str, seed: int) -> tuple[str, list[int], int]:
    """Name, tokens, and length in bytes of the text."""
    origin, pieces, _ = pieces_of(source, reference, seed)
    tokenizer = source.tokenizer
    tokens: list[int] = []
    for piece in pieces:
        tokens += tokenizer.encode(piece.text, parse_special=piece.is_chat)
    return origin, tokens, sum(len(piece.text.encode()) for piece in pieces)


def _require_known_language(source: Source, reference: str, tokens: list[int], n_bytes: int) -> None:
    unknown_id = source.tokenizer.unk_id
    unknown = 0.0 if unknown_id is None else tokens.count(unknown_id) / len(tokens)
    if n_bytes / len(tokens) < FEWEST_BYTES_PER_TOKEN or unknown > MOST_UNKNOWN:
        raise WorkloadError(
            f"{reference} is in a language that the tokenizer of {source.name} does not know: a token holds "
            f"{n_bytes / len(tokens):.1f} bytes and {unknown:.0%} are unknown; give text the model can read"
        )


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode(
                "utf-8", "ignore" if path.stat().st_size > MAX_BYTES else "strict"
            )
    except UnicodeDecodeError as exc:
        raise WorkloadError(f"{path} is not UTF-8 text; give a plain text file") from exc
    except OSError as exc:
        raise WorkloadError(f"cannot read {path}: {exc.strerror or exc}") from exc


def _texts(source: Source, workload: Workload, seed: int) -> Iterator[Piece]:
    """What a workload asks, without the answers that judge it."""
    if len(workload.quality) > 1 and len(workload.traffic) != 1:
        workload, _ = workload.split(0.5, seed)  # the other half stays unseen for a proof
    for item in workload.traffic:
        yield _rendered(source, item.prompt)
    queries = queries_among(workload.quality)
    sample = queries[0].corpus.sample(len(queries), [item.id for item in queries]) if queries else []
    documents = iter(sample)  # one after each query; what is searched is no secret
    for question in workload.quality:
        if isinstance(question, PerplexityItem):
            yield Piece(question.text + "\n\n")
        elif isinstance(question, RetrieveItem):
            yield Piece(f"{question.query}\n\n{next(documents).text}\n\n")
        elif isinstance(question, ChooseItem):
            asked = _rendered(source, question.context)
            for choice in question.choices:  # all that the model is made to read, not which is right
                yield Piece(asked.text.removesuffix("\n\n") + choice + "\n\n", asked.is_chat)
        else:
            yield _rendered(source, question.prompt)


def _rendered(source: Source, prompt: Prompt) -> Piece:
    if isinstance(prompt, str):
        return Piece(prompt + "\n\n")
    if not source.tokenizer.chat_template:
        return Piece("\n".join(m.content for m in prompt) + "\n\n")
    messages = [{"role": m.role, "content": m.content} for m in prompt]
    ids = source.tokenizer.chat(messages, add_generation_prompt=False)
    return Piece(source.tokenizer.decode(ids, skip_special=False), is_chat=True)
