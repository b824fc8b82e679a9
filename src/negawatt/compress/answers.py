"""What a model answers greedily, with the runners-up at every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.compress.usage import Written

if TYPE_CHECKING:
    import torch

BATCH = 16


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to some prompts.

    Attributes:
        tokens: of each answer.
        near: every token that was among the likeliest anywhere.
    """

    tokens: list[list[int]]
    near: set[int]


def answers(model: Any, prompts: Sequence[Written], runners_up: int) -> Answers:
    """Write to a batch of prompts greedily; no token ends an answer early, as in a profile.

    Args:
        model: a decoder with its weights.
        prompts: token ids and how many tokens to write.
        runners_up: tokens besides the likeliest to report at every position.
    """
    import torch
    import transformers

    longest = max(len(tokens) for tokens, _ in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (tokens, _) in enumerate(prompts):  # padded on the left, so that all end together
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    cache = transformers.DynamicCache(config=model.config)
    written, near = [], set()
    with torch.inference_mode():
        for _ in range(max(n for _, n in prompts)):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            best = logits.topk(min(1 + runners_up, logits.shape[1]))
            near |= set(best.indices.flatten().tolist())
            ids = best.indices[:, :1]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            written.append(ids)
    rows = torch.cat(written, dim=1)
    return Answers([rows[i, :n].tolist() for i, (_, n) in enumerate(prompts)], near)


def choices(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Logits at every token of an answer, given all before it, shape ``(len(answer), vocabulary)``.

    A model whose likeliest token is the answer's at every place writes that answer.
    """
    import torch

    row = torch.tensor([[*prompt, *answer][:-1]])
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=row, use_cache=False, logits_to_keep=len(answer)).logits[0]
    return logits
