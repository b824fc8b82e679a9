"""`Width`: narrower feed-forward parts and fewer attention heads, as a dense plain checkpoint.

Every layer loses the same number of channels and heads, since config.json states one width for all. Which
ones leave, and how the rest make up for them, is decided layer by layer on what the layers before it, already
narrowed, give. Query heads leave together with the key and value head that they share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.effect import Effect, Situation, narrowed
from negawatt.compress.moments import moments
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.removal import remove
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import torch

FEED_FORWARD = (
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    (("mlp.c_fc",), "mlp.c_proj"),
    (("intermediate.dense",), "output.dense"),
    (("fc1",), "fc2"),
    *(
        (tuple(f"layer.{place}.DenseReluDense.{name}" for name in names), f"layer.{place}.DenseReluDense.wo")
        for place in (1, 2)  # T5's encoder and decoder
        for names in (("wi",), ("wi_0", "wi_1"))
    ),
)
"""Layers into the feed-forward part's channels, and the layer out of them, as families call them."""
ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj")
FFN_WIDTHS = ("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")


@dataclass(frozen=True, slots=True)
class _Part:
    """Layers that get narrower together.

    Attributes:
        into: layers whose outputs leave.
        out: layer whose inputs leave.
    """

    into: tuple[Linear, ...]
    out: Linear


class Width(Pass):
    """Remove feed-forward channels, and key-value heads with their query heads."""

    name: ClassVar[str] = "width"
    summary: ClassVar[str] = "remove feed-forward channels and attention heads"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("ffn", 0.2, "share of the feed-forward channels to remove, from 0 to below 1", low=0.0,
                  high=0.99, search=(0.1, 0.2, 0.3)),
        Parameter("kv_groups", 0, "key-value heads to remove, with the query heads that share them", low=0),
        Parameter("multiple", 32, "the channels left are a multiple of this, which groups of quantized "
                  "weights need", low=1),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        network = Network(source)
        if not self.values["ffn"] and not self.values["kv_groups"]:
            raise UsageError("width: ffn and kv_groups are both 0, so nothing would be removed")
        if self.values["ffn"]:
            self._channels(_feed_forward(network, 0))
            widths = {_feed_forward(network, n).out.inputs for n in range(len(network.blocks))}
            if len(widths) > 1:
                raise ArtifactError(
                    f"{source.name} has feed-forward parts of {' and '.join(map(str, sorted(widths)))} "
                    "channels, and width removes the same number from all"
                )
        if self.values["kv_groups"]:
            _, _, kv_heads = _attention(network, 0)
            if self.values["kv_groups"] >= kv_heads:
                raise UsageError(
                    f"width: kv_groups must be below the {kv_heads} key-value heads that {source.name} has, "
                    f"not {self.values['kv_groups']}"
                )

    def _channels(self, part: _Part) -> int:
        """Channels to remove, so that a multiple is left.

        Raises:
            UsageError: none, or all.
        """
        n, multiple = part.out.inputs, int(self.values["multiple"])
        left: int = round(n * (1 - self.values["ffn"]) / multiple) * multiple
        if not 0 < left < n:
            raise UsageError(
                f"width: ffn={self.values['ffn']:g} would leave {left} of {n} channels, as a multiple of "
                f"{multiple}; give another share or a smaller multiple"
            )
        return n - left

    def effect(self, at: Situation) -> Effect:
        shape, ffn, groups = at.shape, self.values["ffn"], self.values["kv_groups"]
        gone = groups / shape.n_kv_heads
        own = 2 * shape.hidden * shape.head_dim * (shape.n_heads + shape.n_kv_heads)
        wide = (2 if shape.architecture in ("gpt2", "bert", "mpnet") else 3) * shape.hidden * shape.ffn
        kept = 1 - (ffn * wide + gone * own) / (own + wide)
        found = narrowed(at, kept, f"{kept:.0%} of the layers' weights are left, in as many operations")
        return replace(found, context=1 - gone)

    def apply(self, work: Work) -> None:
        assert work.tokens is not None
        network, draft = work.network(), work.draft
        n_blocks = len(network.blocks)
        hidden: Any = draft.carried.get("hidden")
        for number in range(n_blocks):
            step = f"block {number}"
            work.progress(number, n_blocks, step)
            if draft.kept(step) is not None:
                continue
            hidden = network.embedded(work.tokens) if hidden is None else hidden
            put: dict[str, torch.Tensor] = {}
            with network.loaded(number):
                if self.values["kv_groups"]:
                    self._narrow_attention(network, number, hidden, put)
                if self.values["ffn"]:
                    part = _feed_forward(network, number)
                    (moment,) = moments(network, number, hidden, [part.out])
                    kept, weight = remove(part.out.weight, moment.matrix, 1, self._channels(part))
                    _narrow(
                        network, number, part, dict.fromkeys(range(len(part.into)), kept), kept, weight, put
                    )
                network.forward(number, hidden, out=hidden)
            stored = {name: work.source.as_stored(name, values) for name, values in put.items()}
            draft.keep(step, stored, carry={"hidden": hidden})
        self._reshape(work, network)

    def _narrow_attention(
        self, network: Network, number: int, hidden: torch.Tensor, put: dict[str, torch.Tensor]
    ) -> None:
        import torch

        part, heads, kv_heads = _attention(network, number)
        per_group = part.out.inputs // kv_heads
        (moment,) = moments(network, number, hidden, [part.out])
        kept, weight = remove(part.out.weight, moment.matrix, per_group, self.values["kv_groups"])
        groups = kept[::per_group] // per_group
        width = per_group // (heads // kv_heads)
        shared = (groups[:, None] * width + torch.arange(width)).flatten()
        attention = network.blocks[number].self_attn
        # The block runs on with fewer heads; their number follows from the width of the projections.
        _narrow(network, number, part, {0: kept, 1: shared, 2: shared}, kept, weight, put)
        if hasattr(attention, "num_heads"):
            attention.num_heads = len(groups) * (heads // kv_heads)
        if hasattr(attention, "num_key_value_heads"):
            attention.num_key_value_heads = len(groups)

    def _reshape(self, work: Work, network: Network) -> None:
        """State the new widths in config.json."""
        config, outcome = work.draft.config, work.draft.outcome
        if self.values["ffn"]:
            part = _feed_forward(network, 0)
            left = part.out.inputs - self._channels(part)
            for key in FFN_WIDTHS:
                if (key == "n_inner" and "n_embd" in config) or config.get(key) == part.out.inputs:
                    config[key] = left
            outcome |= {"channels_before": part.out.inputs, "channels": left}
        if self.values["kv_groups"]:
            part, heads, kv_heads = _attention(network, 0)
            left = kv_heads - self.values["kv_groups"]
            config["head_dim"] = part.out.inputs // heads
            config["num_key_value_heads"] = left
            config["num_attention_heads"] = left * (heads // kv_heads)
            outcome |= {"kv_heads_before": kv_heads, "kv_heads": left}


def _feed_forward(network: Network, block: int) -> _Part:
    """Raises:
    ArtifactError: the block has no feed-forward part of a known kind.
    """
    linears = {linear.path: linear for linear in network.linears(block)}
    for into, out in FEED_FORWARD:
        if out in linears and all(path in linears for path in into):
            return _Part(tuple(linears[path] for path in into), linears[out])
    raise ArtifactError(
        f"{network.source.name}: block {block} has no feed-forward part that width knows, only "
        f"{', '.join(linears)}"
    )


def _attention(network: Network, block: int) -> tuple[_Part, int, int]:
    """The attention's layers, its query heads, and its key-value heads.

    Raises:
        ArtifactError: config.json cannot state another number of heads for this architecture.
    """
    linears = {linear.path: linear for linear in network.linears(block)}
    into, out = ATTENTION
    config = network.model.config
    if out not in linears or not all(path in linears for path in into) or not hasattr(config, "head_dim"):
        raise ArtifactError(
            f"{network.source.name} is a {type(network.model).__name__}, whose config.json cannot state "
            "fewer heads of the same width; leave kv_groups at 0"
        )
    heads = int(config.num_attention_heads)
    return _Part(tuple(linears[p] for p in into), linears[out]), heads, int(config.num_key_value_heads)


def _narrow(
    network: Network, block: int, part: _Part, rows: dict[int, torch.Tensor], columns: torch.Tensor,
    weight: torch.Tensor, put: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    """Cut the loaded layers of a part, and enter them into `put` by their names in the checkpoint."""
    names = network.names(block)
    for place, linear in enumerate(part.into):
        linear.put(linear.weight[rows[place]].contiguous())
        put[linear.name] = linear.module.weight.data
        if getattr(linear.module, "bias", None) is not None:
            linear.module.bias.data = linear.module.bias.data[rows[place]].contiguous()
            put[names[f"{linear.path}.bias"]] = linear.module.bias.data
        if hasattr(linear.module, "nf"):  # transformers' Conv1D keeps its width beside its weight
            linear.module.nf = len(rows[place])
    part.out.put(weight.contiguous())
    put[part.out.name] = part.out.module.weight.data
