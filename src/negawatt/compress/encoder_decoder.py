"""What differs where a model has two stacks of blocks: an encoder, and a decoder that looks at what it gave.

Hidden states of both travel together, as ``(windows, 2 × length, hidden)``: the encoder's, then the
decoder's. Every block changes its own half. So whatever walks through blocks need not know.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ENCODER_STATES = "encoder_hidden_states"
"""How blocks of a decoder call what the encoder gave."""


def shifted(tokens: torch.Tensor, config: Any) -> torch.Tensor:
    """What the decoder reads when it is to write `tokens`: its start token, and all but the last."""
    import torch

    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(config, "pad_token_id", None) if start is None else start
    return torch.cat([torch.full_like(tokens[:, :1], start or 0), tokens[:, :-1]], dim=1)


def halves(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's and the decoder's states."""
    length = states.shape[1] // 2
    return states[:, :length], states[:, length:]


def by_name(block: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a block, without its hidden states, with every argument by its name."""
    found = inspect.signature(type(block).forward).bind(block, *args, **keywords).arguments
    rest = found.pop("kwargs", {})
    return {name: value for name, value in {**found, **rest}.items() if name not in ("self", "hidden_states")}
