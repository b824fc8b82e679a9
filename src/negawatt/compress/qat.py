"""`Qat`: train weights while they are rounded, through torchao, until rounding them hurts little.

In every forward pass the weights are rounded to their grid, and gradients go through as if they were not
(Bengio et al. 2013; Jacob et al. 2018). The grid is chosen before and stays, so that what is stored is
exactly what was trained. The model learns its own distribution from before it was rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.effect import Effect, Situation, in_bits
from negawatt.compress.grid import BITS, EMBEDDINGS, GROUP, Grid
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.quantizer import check_groups, finish_outer
from negawatt.compress.recovery import TOP_K, Lesson, asked, step_of
from negawatt.compress.rtn import RoundToNearest
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.compress.training import is_done, losses, train
from negawatt.errors import UsageError, require

if TYPE_CHECKING:
    import torch

    from negawatt.compress.draft import Quantized


class Qat(Pass):
    """Quantization-aware training of the linear layers of all blocks."""

    name: ClassVar[str] = "qat"
    summary: ClassVar[str] = "train weights while they are rounded, towards the model before rounding"
    packs: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        BITS,
        GROUP,
        EMBEDDINGS,
        Parameter("steps", 64, "training steps", low=1, search=(64, 256)),
        Parameter("batch", 4, "windows a step", low=1),
        Parameter("rate", 1e-4, "highest learning rate", low=0.0, high=1.0, open=True,
                  search=(3e-5, 1e-4, 3e-4)),
        Parameter("precision", "bfloat16", "of the arithmetic while training",
                  choices=("bfloat16", "float32")),
        TOP_K,
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        network = Network(source)
        network.refuse_encoder_decoder(self.name, "and it learns to predict the next token of a text")
        _fake_quantizer(self.values["bits"])
        check_groups(source, self.values["group"], self.name)
        if not network.is_decoder:
            raise UsageError(f"qat learns to predict the next token, and {source.name} is an encoder")

    def fallback(self) -> Pass:
        return RoundToNearest(**{key: self.values[key] for key in ("bits", "group", "embeddings")})

    def effect(self, at: Situation) -> Effect:
        return in_bits(at, self.values["bits"], True, self.values["embeddings"])

    def apply(self, work: Work) -> None:
        values, network = self.values, work.network()
        lesson = Lesson(
            work.source, 1.0, values["top_k"], 0.0, 0.0, values["steps"], values["batch"], values["rate"],
            values["precision"],
        )  # fmt: skip
        said = asked(work, lesson)
        if not is_done(work.draft, values["steps"]):
            self._train(work, work.network(), lesson, said)
        work.draft.outcome |= losses(work.draft, values["steps"])
        for block in range(len(network.blocks)):
            step = f"round {block}"
            if work.draft.kept(step) is None:
                work.progress(block, len(network.blocks), "rounding")
                with network.loaded(block):
                    put = {each.name: self._rounded(work, each) for each in network.linears(block)}
                work.draft.keep(step, put)
        finish_outer(work, network, values["embeddings"])

    @property
    def _grid(self) -> Grid:
        return Grid(self.values["bits"], self.values["group"], symmetric=True)

    def _train(self, work: Work, network: Network, lesson: Lesson, said: dict[str, torch.Tensor]) -> None:
        import torch

        with network.whole(torch.float32) as model:
            learnt = {}
            for block in range(len(network.blocks)):
                for linear in network.linears(block):
                    scale, _ = self._grid.scaled(linear.weight, clip=True)
                    learnt[linear.name] = _rounding(linear, scale, self.values["bits"], self.values["group"])
            train(
                work.draft, learnt, step_of(model, work, lesson, said), steps=lesson.steps, rate=lesson.rate,
                progress=work.progress,
            )  # fmt: skip

    def _rounded(self, work: Work, linear: Linear) -> Quantized:
        """A trained weight on the grid that it was trained on: that of the weight before."""
        scale, offset = self._grid.scaled(linear.weight, clip=True)
        trained = work.draft.carried[linear.name]
        codes = self._grid.rounded(trained.T if linear.transposed else trained, scale, offset)
        dtype = work.source.tensors[linear.name].dtype
        return self._grid.quantized(codes, scale, offset, dtype=dtype, transposed=linear.transposed)


def _fake_quantizer(bits: int) -> Any:
    """Torchao's quantizer class and the type of `bits` bits.

    Raises:
        MissingDependency: torchao is not installed.
    """
    import torch

    qat = require("torchao.quantization.qat", extra="qat")
    return qat, getattr(torch, f"int{bits}")


def _rounding(linear: Linear, scale: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Let a loaded layer round its weight whenever it is used; what is learnt, as it is stored."""
    import torch

    qat, kind = _fake_quantizer(bits)
    quantizer = qat.IntxFakeQuantizer(
        qat.IntxFakeQuantizeConfig(kind, group_size=group, is_symmetric=True, is_dynamic=False)
    )
    quantizer.scale, quantizer.zero_point = scale, torch.zeros_like(scale, dtype=torch.int32)

    class Rounding(torch.nn.Module):  # type: ignore[misc]
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            rounded = quantizer(weight.T if linear.transposed else weight)
            return rounded.T if linear.transposed else rounded

    torch.nn.utils.parametrize.register_parametrization(linear.module, "weight", Rounding(), unsafe=True)
    learnt: torch.Tensor = linear.module.parametrizations.weight.original
    return learnt.requires_grad_(True)
