"""`TextModel`: a classifier of texts, run and trained on texts of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Network, half_is_fast
from negawatt.compress.source import Source

if TYPE_CHECKING:
    import torch

Rows = Sequence[Sequence[int]]
"""Texts as token ids."""

TOKENS_AT_ONCE = 4096


class TextModel:
    """A model with a classification head (see `negawatt.compress.head`).

    Attributes:
        network: its modules.
        half: multiply in bfloat16; sums along the residual stream stay in fp32.
    """

    def __init__(self, source: Source, *, half: bool = False) -> None:
        self.network = Network(source)
        self.half = half and half_is_fast()
        self._pad = int(source.config.get("pad_token_id") or 0)

    def run(
        self, model: Any, rows: Rows, *, with_hidden: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of texts, shape ``(texts, labels)``, and their mean last hidden states if asked for.

        Args:
            model: the network's model with its weights, see `Network.whole`.
            rows: the texts; shorter ones are padded.
            with_hidden: also give the mean over a text's tokens, shape ``(texts, width)``.
        """
        import torch

        ids, mask = padded(rows, self._pad)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            found = model(input_ids=ids, attention_mask=mask, output_hidden_states=with_hidden)
        mean = None
        if with_hidden:
            weight = mask[..., None].float()
            mean = (found.hidden_states[-1].float() * weight).sum(1) / weight.sum(1)
        return found.logits.float(), mean

    def answers(
        self, rows: Rows, *, with_hidden: bool = False, tell: Callable[[int], None] = lambda done: None
    ) -> dict[str, torch.Tensor]:
        """What the model says of texts: ``logits``, and ``hidden`` if asked for, in their order."""
        import torch

        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        logits: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        with self.network.whole(torch.float32) as model, torch.inference_mode():
            for part in _parts(rows, order):
                tell(len(logits))
                found, mean = self.run(model, [rows[i] for i in part], with_hidden=with_hidden)
                logits += list(found)
                hidden += [] if mean is None else list(mean)
        back = torch.tensor(order).argsort()
        answers = {"logits": torch.stack(logits)[back]}
        return answers | ({"hidden": torch.stack(hidden)[back]} if with_hidden else {})

    # -- blocks that are not trained ---------------------------------------------------------------

    def given(self, model: Any, rows: Rows, blocks: int) -> list[torch.Tensor]:
        """What the first `blocks` blocks give for each text, shape ``(tokens, width)``.

        Kept in bfloat16 where that is what is multiplied.
        """
        import torch

        found: list[Any] = [None] * len(rows)
        last = self.network.blocks[blocks - 1]
        caught: list[torch.Tensor] = []

        def catch(module: Any, inputs: Any, output: Any) -> None:
            caught.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        hook = last.register_forward_hook(catch)
        try:
            with torch.no_grad():
                for part in _parts(rows, sorted(range(len(rows)), key=lambda i: len(rows[i]))):
                    with suppress(_Reached):
                        self.run(model, [rows[i] for i in part])
                    for place, hidden in zip(part, caught.pop(), strict=True):
                        kept = hidden[: len(rows[place])]
                        found[place] = kept.to(torch.bfloat16 if self.half else torch.float32).clone()
        finally:
            hook.remove()
        return found

    @contextmanager
    def beginning_at(self, block: int) -> Iterator[Callable[[Sequence[torch.Tensor]], None]]:
        """Let the model begin at a block, or behind the last, within the `with` block.

        What is yielded takes the hidden states that `given` gave for the texts to be run next. At
        block 0 nothing needs to be given: the embeddings are computed, and take no gradient.
        """
        import torch

        if block == 0:

            def detach(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
                return (inputs[0].detach(), *inputs[1:])

            hook = self.network.blocks[0].register_forward_pre_hook(detach)
            try:
                yield lambda hidden: None
            finally:
                hook.remove()
            return
        current: list[torch.Tensor] = []

        def give(hidden: Sequence[torch.Tensor]) -> None:
            current[:] = [torch.nn.utils.rnn.pad_sequence([h.float() for h in hidden], batch_first=True)]

        tuples = self._blocks_give_tuples()

        def stand_in(*args: Any, **keywords: Any) -> Any:
            return (current[0],) if tuples else current[0]

        for each in self.network.blocks[:block]:
            each.forward = stand_in
        try:
            yield give
        finally:
            for each in self.network.blocks[:block]:
                del each.forward

    def _blocks_give_tuples(self) -> bool:
        """An older kind of model, whose blocks give tuples."""
        import torch

        kinds: list[bool] = []

        def see(module: Any, inputs: Any, output: Any) -> None:
            kinds.append(isinstance(output, tuple))

        first = self.network.blocks[0]
        hook = first.register_forward_hook(see)
        try:
            with torch.inference_mode():
                self.run(self.network.model, [[self._pad + 1]])
        finally:
            hook.remove()
        return kinds[0]


class _Reached(Exception):
    """The last block that was wanted has run."""


def padded(rows: Rows, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of texts, each of shape ``(texts, longest)``."""
    import torch

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return ids, mask


def _parts(rows: Rows, order: Sequence[int]) -> Iterator[Sequence[int]]:
    """`order` in parts of so many texts that their padded tokens fit `TOKENS_AT_ONCE`."""
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(rows[order[end]]) <= TOKENS_AT_ONCE:
            end += 1
        yield order[start:end]
        start = end
