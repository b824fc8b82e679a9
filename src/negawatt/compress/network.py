"""`Network`: a model's own modules, run block by block with the weights of one block in memory.

The modules are those of transformers, made without memory for weights (torch's meta device), so any
decoder or encoder whose blocks form one list works without code of its own. What lies around the
blocks (embedding, final norm, head) is loaded when it is needed. How the model calls its blocks
(masks, rotary positions) is learned by running the model's own code with the blocks cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from negawatt.compress.encoder_decoder import ENCODER_STATES, by_name, halves, shifted
from negawatt.compress.linear import Linear as Linear
from negawatt.compress.linear import linears_of
from negawatt.compress.modules import blocks_of, built, encoder_length
from negawatt.compress.source import Source
from negawatt.engine.rounded_inputs import install
from negawatt.engine.rounded_inputs import rounding as rounding_of
from negawatt.errors import ArtifactError, UsageError, require

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096
"""Tokens in one forward call."""


def half_is_fast() -> bool:
    """Whether this processor has instructions that multiply in bfloat16."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported())


class Network:
    """A model whose blocks are loaded one at a time.

    Attributes:
        source: where weights come from.
        blocks: the modules of the blocks, in the order in which they run.
        n_encoder: how many of them are the encoder's, in a model that has encoder and decoder; else 0.
            Hidden states are then twice as long as the text: see `negawatt.compress.encoder_decoder`.
        is_decoder: it predicts the next token of a text.

    Raises:
        ArtifactError: the architecture is unknown to transformers, has no list of blocks, or weights
            are missing.
    """

    def __init__(self, source: Source) -> None:
        require("torch", extra="compress")
        self.source = source
        self.model, self._names = built(source)
        self._base = self.model.base_model
        found = blocks_of(self.model, source)
        self._paths, self.blocks = list(found), list(found.values())
        self.n_encoder = encoder_length(self.model, self._paths)
        self.is_decoder = type(self.model).__name__.endswith(("CausalLM", "LMHeadModel"))
        self._calls: dict[tuple[int, int], list[_Call]] = {}
        self._half = False
        self._tuples = False
        self._extras = 0
        modules = dict(self.model.named_modules())
        rounding = rounding_of(source.tensors)
        for path, name in self._names.items():
            if name in rounding and (scale := rounding[name].input_scale) is not None:
                install(modules[path.removesuffix(".weight")], scale)

    def in_half_precision(self) -> Network:
        """Let blocks and head multiply in bfloat16 where this processor has the instructions for it.

        Sums along the residual stream stay in fp32. Good enough for the statistics that a pass is
        calibrated on; a quality that is reported is computed in fp32.
        """
        self._half = half_is_fast()
        return self

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Multiply in fp32 within the `with` block, whatever `in_half_precision` said."""
        half, self._half = self._half, False
        try:
            yield
        finally:
            self._half = half

    # -- structure -------------------------------------------------------------------------------

    @property
    def checkpoint_names(self) -> dict[str, str]:
        """The name in the checkpoint of every parameter of the model."""
        return self._names

    def names(self, block: int) -> dict[str, str]:
        """The parameters of a block by their path within it, with their names in the checkpoint."""
        prefix = f"{self._paths[block]}."
        return {p.removeprefix(prefix): n for p, n in self._names.items() if p.startswith(prefix)}

    def linears(self, block: int) -> list[Linear]:
        """The linear layers of a block, in the order in which it names them.

        Raises:
            ArtifactError: the block holds a matrix in a kind of layer that is not known here.
        """
        return linears_of(self.blocks[block], self.names(block), f"block {block} of {self.source.name}")

    @cached_property
    def outer(self) -> dict[str, str]:
        """Parameters outside the blocks by their path in the model, with their checkpoint names."""
        inner = tuple(f"{path}." for path in self._paths)
        return {p: n for p, n in self._names.items() if not p.startswith(inner)}

    def refuse_encoder_decoder(self, technique: str, reason: str) -> None:
        """Raises:
        UsageError: the model has an encoder and a decoder, which a technique cannot work on.
        """
        if self.n_encoder:
            raise UsageError(f"{technique}: {self.source.name} has an encoder and a decoder, {reason}")

    # -- weights ---------------------------------------------------------------------------------

    @contextmanager
    def loaded(self, block: int) -> Iterator[Any]:
        """The module of a block with its weights, in fp32; they are freed when the `with` block ends."""
        with self._weights(self.blocks[block], self.names(block)) as module:
            yield module

    @contextmanager
    def whole(self, dtype: torch.dtype) -> Iterator[Any]:
        """The whole model with all its weights in `dtype`, freed when the `with` block ends."""
        with self._weights(self.model, self._names, dtype) as model:
            yield model

    @contextmanager
    def _weights(self, module: Any, names: dict[str, str], dtype: torch.dtype | None = None) -> Iterator[Any]:
        import torch

        shared: dict[str, Any] = {}
        empty: list[tuple[Any, str, Any]] = []
        try:
            for path, name in names.items():
                parent, _, leaf = path.rpartition(".")
                owner = module.get_submodule(parent)
                if name not in shared:
                    shared[name] = torch.nn.Parameter(
                        self.source.tensor(name).to(dtype or torch.float32), requires_grad=False
                    )
                expected = owner._parameters[leaf]
                if tuple(expected.shape) != tuple(shared[name].shape):
                    raise ArtifactError(
                        f"{self.source.name}: {name} is {tuple(shared[name].shape)}, and config.json "
                        f"asks for {tuple(expected.shape)}"
                    )
                empty.append((owner, leaf, expected))
                owner._parameters[leaf] = shared[name]
            yield module
        finally:
            for owner, leaf, meta in empty:
                owner._parameters[leaf] = meta

    @staticmethod
    def batches(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        """Windows a few at a time, as `forward` takes them: views of shape ``(few, length, …)``."""
        return (batch for _, batch in _indexed_batches(tensor))

    # -- running ---------------------------------------------------------------------------------

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the first block gets, fp32, shape ``(windows, length, hidden)``.

        Args:
            tokens: int64, shape ``(windows, length)``.
        """
        import torch

        length = tokens.shape[1] * (2 if self.n_encoder else 1)
        hidden = torch.empty(len(tokens), length, self.model.config.hidden_size)
        with torch.inference_mode(), self._weights(self.model, self._without_head()):
            for start, batch in _indexed_batches(tokens):
                calls = self._recorded(batch)
                firsts = [calls[0].hidden, *([calls[self.n_encoder].hidden] if self.n_encoder else [])]
                hidden[start : start + len(batch)] = torch.cat(firsts, dim=1)
        return hidden

    def forward(self, block: int, hidden: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Run a loaded block on hidden states of shape ``(windows, length, hidden)``.

        Args:
            block: its number; call this inside `loaded`.
            hidden: what the block gets.
            out: where to put the result; `hidden` itself is allowed. A new tensor if absent.
        """
        import torch

        out = torch.empty_like(hidden) if out is None else out
        with torch.inference_mode():
            for start, batch in _indexed_batches(hidden):
                out[start : start + len(batch)] = self._run(block, batch)
        return out

    def _run(self, block: int, batch: torch.Tensor) -> torch.Tensor:
        import torch

        if not self.n_encoder:
            return self._block_run(block, batch, {})
        ours, theirs = halves(batch)
        if block >= self.n_encoder:
            return torch.cat([ours, self._block_run(block, theirs, {ENCODER_STATES: ours})], dim=1)
        given = self._block_run(block, ours, {})
        if block == self.n_encoder - 1:  # what the decoder looks at has passed the encoder's last norm
            with self._weights(self.model, self._without_head()):
                blank = torch.zeros(given.shape[:2], dtype=torch.int64)
                given = self._through(self.model.get_encoder(), blank, given).last_hidden_state
        return torch.cat([given, theirs], dim=1)

    def _block_run(self, block: int, batch: torch.Tensor, changed: dict[str, Any]) -> torch.Tensor:
        """A block's own output, called as the model does but for the keywords `changed`."""
        import torch

        key = (batch.shape[0], batch.shape[1])
        if key not in self._calls:
            blank = torch.zeros(key, dtype=torch.int64)
            with self._weights(self.model, self._without_head()):
                self._recorded(blank)
        call = self._calls[key][block]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
            result = self.blocks[block](batch, *call.args, **{**call.keywords, **changed})
        first: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return first

    def losses(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Loss of every predicted token in nats, shape ``(windows, length - 1)``.

        Args:
            tokens: shape ``(windows, length)``.
            hidden: what the last block gave for them.
        """
        import torch

        found = []
        with torch.inference_mode(), self._weights(self.model, self.outer):
            for window, states in zip(tokens, hidden, strict=True):
                with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
                    logits = self._through(self.model, window[None], states[None]).logits[0, :-1].float()
                found.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        return torch.stack(found)

    def outputs(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The base model's last hidden states (the decoder's, of two), after its final norm if it has one."""
        import torch

        hidden = halves(hidden)[1] if self.n_encoder else hidden
        last = self.model.get_decoder() if self.n_encoder else self._base
        given: list[Any] = []
        hook = last.register_forward_hook(lambda module, inputs, output: given.append(output))
        found = torch.empty_like(hidden)
        try:
            with torch.inference_mode(), self._weights(self.model, self._without_head()):
                for start, batch in _indexed_batches(tokens):
                    part = slice(start, start + len(batch))
                    self._through(self._base, batch, hidden[part])
                    found[part] = given.pop().last_hidden_state
        finally:
            hook.remove()
        return found

    def _without_head(self) -> dict[str, str]:
        """The outer parameters that the base model has; a tied head comes with the embedding."""
        prefix = "" if self._base is self.model else f"{self.model.base_model_prefix}."
        return {p: n for p, n in self.outer.items() if p.startswith(prefix)}

    def _recorded(self, tokens: torch.Tensor) -> list[_Call]:
        """How the model calls each of its blocks for a batch of this shape."""
        calls: dict[int, _Call] = {}
        shared: list[Any] = []

        def record(number: int) -> Callable[..., Any]:
            def stub(*args: Any, **keywords: Any) -> Any:
                hidden = keywords.pop("hidden_states") if "hidden_states" in keywords else args[0]
                if not self.n_encoder:
                    calls[number] = _Call(number, hidden, tuple(args[1:]), keywords)
                    return (hidden,) if self._tuples else hidden
                named = by_name(self.blocks[number], (hidden, *args[1:]), keywords)
                calls[number] = _Call(number, hidden, (), named)
                if number not in (0, self.n_encoder):
                    return (hidden, *shared) if shared else hidden
                shared[:] = self._handed_on(number, hidden, named)
                return (hidden, *shared) if shared else hidden

            return stub

        with self._replaced([record(i) for i in range(len(self.blocks))]):
            self._called(self._base, tokens)
        if len(calls) != len(self.blocks):
            raise ArtifactError(f"{self.source.name} does not run its blocks one after the other, each once")
        key = (tokens.shape[0], tokens.shape[1])
        found = [calls[i] for i in range(len(self.blocks))]
        self._calls.setdefault(key, [c.without_hidden() for c in found])
        return found

    def _handed_on(self, number: int, hidden: torch.Tensor, named: dict[str, Any]) -> tuple[Any, ...]:
        """What the first block of a stack gives beside its states, for all others: T5's position biases."""
        block = self.blocks[number]
        with self.loaded(number):
            given = type(block).forward(block, hidden, **named)
        extras = tuple(given[1:]) if isinstance(given, tuple) else ()
        self._extras = len(extras)
        return extras

    def _through(self, model: Any, tokens: torch.Tensor, hidden: torch.Tensor) -> Any:
        """The model's own code around its blocks, as if they had given `hidden`."""

        def stub(*args: Any, **keywords: Any) -> Any:
            extras = (None,) * self._extras
            return (hidden, *extras) if self._tuples or extras else hidden

        with self._replaced([stub] * len(self.blocks)):
            return self._called(model, tokens)

    def _called(self, model: Any, tokens: torch.Tensor) -> Any:
        if self.n_encoder:
            both = model is self.model or model is self._base
            asked = {"decoder_input_ids": shifted(tokens, self.model.config)} if both else {}
            return model(input_ids=tokens, use_cache=False, **asked) if both else model(input_ids=tokens)
        try:
            return model(input_ids=tokens)
        except (IndexError, RuntimeError, TypeError, ValueError, AttributeError):
            if self._tuples:
                raise
            self._tuples = True  # an older kind of model, whose blocks give tuples
            return model(input_ids=tokens)

    @contextmanager
    def _replaced(self, stubs: Sequence[Callable[..., Any]]) -> Iterator[None]:
        """Blocks that keep their attributes, but run a stub."""
        for block, stub in zip(self.blocks, stubs, strict=True):
            block.forward = stub
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward


@dataclass(frozen=True, slots=True)
class _Call:
    block: int
    hidden: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    def without_hidden(self) -> _Call:
        return _Call(self.block, None, self.args, self.keywords)


def _indexed_batches(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    size = max(1, BATCH_TOKENS // tensor.shape[1])
    for start in range(0, len(tensor), size):
        yield start, tensor[start : start + size]
