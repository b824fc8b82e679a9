"""Text that a model writes itself, for calibrating it where there is no other (Liu et al. 2023, LLM-QAT)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.artifact.safetensors_file import Row, read_header, write_safetensors
from negawatt.compress.network import Network
from negawatt.compress.source import Source
from negawatt.errors import UsageError
from negawatt.home import home, written_beside

if TYPE_CHECKING:
    import torch

    from negawatt.compress.technique import Progress

BATCH = 40
_DOCUMENT_STARTS = ("<|endoftext|>", "<bos>", "<s>", "<|begin_of_text|>")


def written(source: Source, n: int, length: int, seed: int, progress: Progress) -> torch.Tensor:
    """`n` texts of `length` tokens sampled from the model, int64; kept in the cache for the next time.

    Sampled at temperature 1 from the start of a document, in bfloat16.

    Raises:
        UsageError: the model is no decoder.
    """
    import torch

    network = Network(source)
    if not network.is_decoder:
        raise UsageError(f"{source.name} does not write text; give some to calibrate on with --calibration")
    place = _place(source, n, length, seed)
    if place.is_file():
        stored = read_header(place).get("tokens")
        if stored is not None and stored.shape == (n, length):
            return torch.frombuffer(bytearray(stored.stored_bytes()), dtype=torch.int64).reshape(n, length)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with network.whole(torch.bfloat16) as model:
        for begin in range(0, n, BATCH):
            size = min(BATCH, n - begin)
            start = torch.full((size, 1), _start(source), dtype=torch.int64)

            def tell(token: int, begin: int = begin, size: int = size) -> None:
                progress(begin * length + token * size, n * length, "the model writes text to calibrate on")

            parts.append(_sampled(model, start, length, generator, tell))
    tokens = torch.cat(parts)
    with written_beside(place) as temporary:
        write_safetensors(temporary, [Row("tokens", "I64", tokens.shape, tokens.numpy)])
    return tokens


def _sampled(
    model: Any, start: torch.Tensor, length: int, generator: torch.Generator, tell: Callable[[int], None]
) -> torch.Tensor:
    import torch
    import transformers

    # One that grows is copied at every token, which leaves holes of every size in the heap.
    cache = transformers.StaticCache(config=model.config, max_cache_len=length)
    tokens = [start]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions call the cache otherwise, older ones not
        while len(tokens) < length:
            logits = model(input_ids=tokens[-1], past_key_values=cache, use_cache=True).logits[:, -1].float()
            tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            if len(tokens) % 16 == 0:
                tell(len(tokens))
    return torch.cat(tokens, dim=1)


def _start(source: Source) -> int:
    """The token that begins a document."""
    tokenizer = source.tokenizer
    for name in _DOCUMENT_STARTS:
        ids = tokenizer.encode(name)
        if len(ids) == 1:
            return ids[0]
    for known in (tokenizer.bos_id, tokenizer.eos_id):
        if known is not None:
            return known
    return 0


def _place(source: Source, n: int, length: int, seed: int) -> Path:
    identity = hashlib.sha256(f"{source.identity}\n{n} {length} {seed}".encode()).hexdigest()[:24]
    return home() / "cache" / "written" / f"{identity}.safetensors"
