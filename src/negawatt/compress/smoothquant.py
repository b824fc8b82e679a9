"""`SmoothQuant`: weights and activations of 8 bits, after what is hard to round moved into the weights.

Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models". Inputs are rounded on one symmetric scale a layer, fixed by the text, which is what integer
kernels take; outliers make it coarse. Each input channel is therefore divided by a share of its largest
value, and the weights multiplied with it, where the module before can take that back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.draft import Quantized
from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.folding import Folding
from negawatt.compress.grid import EMBEDDINGS, Grid
from negawatt.compress.inputs import groups, inputs
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import finish_outer
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.engine import openvino_encoder, openvino_ir
from negawatt.engine.rounded_inputs import MOST, install, rounded

if TYPE_CHECKING:
    import torch

_BITS = 8
ABLE = (*openvino_ir.ARCHITECTURES, *openvino_encoder.FAMILIES)
"""Architectures whose integers OpenVINO multiplies: decoders, and encoders with a head or without."""
INTEGER_WORK = 0.7
"""What integers take of the arithmetic of weights in 8 bits alone: 0.65 to 0.75 where it was measured."""
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the largest input that are tried as the end of the range."""
_MOST_WINDOWS = 8
"""Windows on which they are tried."""

NOTE = "{rounded} of {layers} layers round their inputs to 8 bits; {who}"
INTEGERS = (
    "OpenVINO multiplies these in integers with weights=native, which pays at larger batches and in prompts "
    "and not at batch 1; transformers rounds likewise without saving; a checkpoint or GGUF holds the weights "
    "alone"
)
NOBODY = "no engine here multiplies the integers of this architecture, so nothing gets faster"
"""What a reader of results must know; `benchmarks/compress_smoothquant.py --speed` shows it."""


class SmoothQuant(Pass):
    """Round weights and inputs of the linear layers of all blocks to 8 bits."""

    name: ClassVar[str] = "smoothquant"
    summary: ClassVar[str] = "weights and activations of 8 bits, outliers moved into the weights"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "alpha", 0.5, "how much of an input's size moves into the weights; 0 moves nothing",
            low=0.0, high=1.0, search=(0.5, 0.65, 0.8),
        ),
        Parameter(
            "tolerance", 0.01, "a layer's inputs stay as they are where rounding them costs more than this "
            "share of a token's output energy", low=0.0, high=1.0, search=(0.01, 0.03),
        ),
        EMBEDDINGS,
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def fallback(self) -> Pass | None:
        plain = SmoothQuant(**{**self.values, "alpha": 0.0})
        return plain if self.values["alpha"] else None

    def effect(self, at: Situation) -> Effect:
        found = in_bits(at, _BITS, True, self.values["embeddings"])
        if at.engine != "openvino" or at.shape.architecture not in ABLE:
            return replace(found, why=f"{found.why}; its integers are multiplied by OpenVINO alone")
        return replace(found, arithmetic=INTEGER_WORK, why=f"{found.why}, multiplied in integers")

    def apply(self, work: Work) -> None:
        assert work.tokens is not None
        network, draft = work.network().in_half_precision(), work.draft
        n_blocks = len(network.blocks)
        hidden: torch.Tensor | None = draft.carried.get("hidden")
        for number in range(n_blocks):
            step = f"block {number}"
            work.progress(number, n_blocks + 1, step)
            if draft.kept(step) is not None:
                continue
            hidden = network.embedded(work.tokens) if hidden is None else hidden
            last = number == n_blocks - 1
            with network.loaded(number):
                put, facts = self._block(network, number, hidden, work.source)
                if not last:
                    network.forward(number, hidden, out=hidden)
            draft.keep(step, put, carry={} if last else {"hidden": hidden}, facts=facts)
        finish_outer(work, network, self.values["embeddings"])
        found = [draft.kept(f"block {number}") or {} for number in range(n_blocks)]
        count = {name: sum(len(f[name]) for f in found) for name in ("rounded", "kept")}
        draft.outcome["inputs_kept"] = [layer for f in found for layer in f["kept"]]
        who = INTEGERS if work.source.config.get("model_type") in ABLE else NOBODY
        draft.notes.append(NOTE.format(rounded=count["rounded"], layers=sum(count.values()), who=who))

    def _block(
        self, network: Network, number: int, hidden: torch.Tensor, source: Source
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Smooth and quantize the layers of a loaded block; its modules are left rounding."""
        folding = Folding(network, number, hidden)
        grouped = groups(network, number, hidden, network.linears(number))
        tops = []  # before anything is rounded; what rounding adds is little, and only ends of ranges follow
        for layers in grouped:
            largest = _largest(network, number, hidden, layers[0])
            if self.values["alpha"]:
                smoothing = _smoothing(layers, largest, self.values["alpha"])
                largest = largest / smoothing if folding.take(layers, smoothing) else largest
            tops.append(max(float(largest.max()), 1e-6))
        put: dict[str, Any] = dict(folding.changed(source))
        facts: dict[str, list[str]] = {"rounded": [], "kept": []}
        for layers, top in zip(grouped, tops, strict=True):
            scale, lost = _input_scale(network, number, hidden, layers, top)
            keeps = lost > self.values["tolerance"]
            for linear in layers:
                dtype = source.tensors[linear.name].dtype
                put[linear.name] = quantized(linear, None if keeps else scale, dtype)
                if not keeps:
                    install(linear.module, scale)
                facts["kept" if keeps else "rounded"].append(linear.name)
        return put, facts


def quantized(linear: Linear, input_scale: float | None, dtype: str) -> Quantized:
    """A layer's weight in 8 bits, one scale an output; the module gets the rounded weight."""
    grid = Grid(_BITS, linear.inputs, symmetric=True)
    weight = linear.weight.float()
    step, offset = grid.scaled(weight, clip=False)
    codes = grid.rounded(weight, step, offset)
    linear.put(grid.values(codes, step, offset))
    return Quantized(
        codes, step.half(), None, _BITS, linear.inputs, dtype, linear.transposed, input_scale
    )  # fmt: skip


def _largest(network: Network, number: int, hidden: torch.Tensor, linear: Linear) -> torch.Tensor:
    """The largest size of every input, shape ``(inputs,)``."""
    import torch

    found = torch.zeros(linear.inputs)
    for rows in inputs(network, number, hidden, linear):
        found = torch.maximum(found, rows.abs().amax(dim=0))
    return found


def _smoothing(layers: tuple[Linear, ...], largest: torch.Tensor, alpha: float) -> torch.Tensor:
    """What every input is divided by, shape ``(inputs,)`` (Xiao et al. 2023, eq. 4)."""
    import torch

    weights = torch.stack([linear.weight.abs().amax(dim=0) for linear in layers]).amax(dim=0)
    return (largest.clamp_min(1e-5) ** alpha / weights.clamp_min(1e-5) ** (1 - alpha)).clamp(1e-3, 1e3)


def _input_scale(
    network: Network, number: int, hidden: torch.Tensor, layers: tuple[Linear, ...], top: float
) -> tuple[float, float]:
    """The scale of a group's inputs, and the share of a token's output that rounding to it costs.

    The scale is that with the least squared error of the outputs, where errors of inputs count by the energy
    of the weights behind them. What it costs is a mean over tokens: next to one huge token the others may be
    rounded to nothing, which no sum of squares shows.

    Args:
        top: the largest size of any input.
    """
    import torch

    sample = hidden[:: max(1, len(hidden) // _MOST_WINDOWS)]
    weight = torch.cat([linear.weight for linear in layers]).float()
    importance, lost = weight.square().sum(dim=0), torch.zeros(len(_SHARES))
    for rows in inputs(network, number, sample, layers[0]):
        for i, share in enumerate(_SHARES):
            gone = rounded(rows, share * top / MOST) - rows
            lost[i] += (gone.square().sum(dim=0) * importance).sum()
    scale = _SHARES[int(lost.argmin())] * top / MOST
    shares = []
    for rows in inputs(network, number, sample, layers[0]):
        energy = (rows @ weight.T).square().sum(dim=1)
        shares.append(((rounded(rows, scale) - rows) @ weight.T).square().sum(dim=1) / (energy + 1e-30))
    return scale, float(torch.cat(shares).clamp_max(1).mean())
