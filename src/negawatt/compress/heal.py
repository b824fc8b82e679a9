"""`Heal`: train a cut model back towards the one it was cut from.

Low-rank additions to every linear layer of the blocks (Hu et al. 2022, LoRA) are trained on the calibration
windows, and merged into the weights when done. With a teacher the student learns the teacher's distribution
over the next token (Hinton et al. 2015), without one the text itself. The weights themselves stay frozen, so
that memory and checkpoints are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.artifact import Artifact
from negawatt.compress.network import Linear, Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

STEPS_KEPT = 16
"""Training steps between two checkpoints."""
WARM_UP = 0.1
"""Share of the steps over which the rate rises, before it falls along a cosine."""


class Heal(Pass):
    """Train low-rank additions, and merge them."""

    name: ClassVar[str] = "heal"
    summary: ClassVar[str] = "train a cut model back towards its teacher"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("teacher", "", "model to learn from, with the same tokens; none: learn the text itself"),
        Parameter("steps", 64, "training steps", low=1, search=(64, 256)),
        Parameter("batch", 4, "windows a step", low=1),
        Parameter("rank", 16, "rank of the additions", low=1, search=(8, 32)),
        Parameter("rate", 1e-3, "highest learning rate", low=0.0, high=1.0, open=True, search=(3e-4, 1e-3)),
        Parameter("precision", "bfloat16", "of the frozen weights while training",
                  choices=("bfloat16", "float32")),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        network = Network(source)
        network.refuse_encoder_decoder(self.name, "and it trains a model to predict the next token of a text")
        if not network.is_decoder:
            raise UsageError(
                f"heal trains a model to predict the next token, and {source.name} is an encoder"
            )
        if self.values["teacher"]:
            self._teacher(source)

    def _teacher(self, source: Source) -> Source:
        """Raises:
        UsageError: the teacher has other tokens.
        """
        teacher = Source.of(Artifact.open(self.values["teacher"]))
        if teacher.tokenizer.definition != source.tokenizer.definition:
            raise UsageError(
                f"heal: {teacher.name} has other tokens than {source.name}; choose a teacher with "
                "the same, or heal before the vocabulary is cut"
            )
        return teacher

    def apply(self, work: Work) -> None:
        network, draft = work.network(), work.draft
        total = self.values["steps"]
        ends = [*range(STEPS_KEPT, total, STEPS_KEPT), total]
        if self.values["teacher"]:
            teacher = self._teacher(work.source)
            draft.outcome["teacher_sha256"] = teacher.identity
        if any(draft.kept(f"step {end}") is None for end in ends):
            self._train(work, network, ends)
        losses = [(draft.kept(f"step {end}") or {})["loss"] for end in ends]
        draft.outcome |= {"loss_first": losses[0], "loss_last": losses[-1]}
        for block in range(len(network.blocks)):
            if draft.kept(f"merge {block}") is None:
                work.progress(block, len(network.blocks), "merging")
                draft.keep(f"merge {block}", _merged(work, network, block))

    def _train(self, work: Work, network: Network, ends: list[int]) -> None:
        import torch

        assert work.tokens is not None
        precision = getattr(torch, self.values["precision"])
        additions = _Additions(network, self.values["rank"], work.seed, dict(work.draft.carried))
        teacher = Network(self._teacher(work.source)) if self.values["teacher"] else None
        with network.whole(precision) as student, _maybe(teacher, precision) as other:
            additions.attach()
            done = 0
            for end in ends:
                if work.draft.kept(f"step {end}") is None:
                    loss = 0.0
                    for step in range(done, end):
                        work.progress(step, ends[-1], "training")
                        rows = work.tokens[self._chosen(step, len(work.tokens), work.seed)]
                        loss += self._step(student, other, rows, additions, step) / (end - done)
                    work.draft.keep(f"step {end}", carry=additions.state(), facts={"loss": loss})
                done = end
            additions.detach()

    def _chosen(self, step: int, n: int, seed: int) -> list[int]:
        """The windows of a step; every one is seen once before any is seen again."""
        import torch

        batch = self.values["batch"]
        found = []
        for place in range(step * batch, (step + 1) * batch):
            epoch, at = divmod(place, n)
            generator = torch.Generator().manual_seed(seed + epoch)
            found.append(int(torch.randperm(n, generator=generator)[at]))
        return found

    def _step(
        self, student: Any, teacher: Any, rows: torch.Tensor, additions: _Additions, step: int
    ) -> float:
        """One update; the loss before it, in nats a token."""
        loss = 0.0
        for row in rows:  # one window at a time: the logits are the largest thing in memory
            part = _loss(student, teacher, row[None]) / len(rows)
            part.backward()
            loss += part.item()
        progress = (step + 1) / self.values["steps"]
        factor = (
            min(1.0, progress / WARM_UP)
            * 0.5
            * (1 + math.cos(math.pi * (progress - 1 / self.values["steps"])))
        )
        additions.update(self.values["rate"] * factor)
        return loss


@contextmanager
def _maybe(network: Network | None, precision: torch.dtype) -> Iterator[Any]:
    if network is None:
        yield None
        return
    with network.whole(precision) as model:
        yield model


def _loss(student: Any, teacher: Any, row: torch.Tensor) -> torch.Tensor:
    import torch

    found = student(input_ids=row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    if teacher is None:
        return torch.nn.functional.nll_loss(found, row[0, 1:])
    with torch.no_grad():
        wanted = teacher(input_ids=row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


class _Additions:
    """``B A`` for every linear layer of the blocks, with their moments for Adam (Kingma and Ba 2015)."""

    BETAS = (0.9, 0.95)

    def __init__(self, network: Network, rank: int, seed: int, state: dict[str, torch.Tensor]) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.values: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []
        self._linears: list[Linear] = []
        for block in range(len(network.blocks)):
            for linear in network.linears(block):
                self._linears.append(linear)
                first = torch.randn(rank, linear.inputs, generator=generator) / math.sqrt(linear.inputs)
                self.values[f"{linear.name}|A"] = first
                self.values[f"{linear.name}|B"] = torch.zeros(linear.outputs, rank)
        self.moments = {f"{kind}|{key}": torch.zeros_like(value)
                        for kind in ("m", "v") for key, value in self.values.items()}  # fmt: skip
        self.count = 0
        if state:
            self.count = int(state["count"][0])
            self.values = {key: state[key] for key in self.values}
            self.moments = {key: state[key] for key in self.moments}
        for value in self.values.values():
            value.requires_grad_(True)

    def attach(self) -> None:
        """Add to what the layers give, until `detach`."""
        for linear in self._linears:
            hook = self._adding(self.values[f"{linear.name}|A"], self.values[f"{linear.name}|B"])
            self._hooks.append(linear.module.register_forward_hook(hook))

    @staticmethod
    def _adding(first: torch.Tensor, second: torch.Tensor) -> Callable[..., torch.Tensor]:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            given = inputs[0]
            return output + (given @ first.to(given.dtype).T) @ second.to(given.dtype).T

        return add

    def detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def update(self, rate: float) -> None:
        """One step of Adam with the gradients at hand, which are then cleared."""
        import torch

        self.count += 1
        slow, slower = self.BETAS
        with torch.no_grad():
            for key, value in self.values.items():
                assert value.grad is not None
                mean, square = self.moments[f"m|{key}"], self.moments[f"v|{key}"]
                mean.lerp_(value.grad, 1 - slow)
                square.mul_(slower).addcmul_(value.grad, value.grad, value=1 - slower)
                scale = (square / (1 - slower**self.count)).sqrt_().add_(1e-8)
                value.sub_(rate / (1 - slow**self.count) * mean / scale)
                value.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        values = {key: value.detach() for key, value in self.values.items()}
        return {"count": torch.tensor([self.count]), **values, **self.moments}


def _merged(work: Work, network: Network, block: int) -> dict[str, torch.Tensor]:
    """The weights of a block with their additions, in the types in which they are stored."""
    put = {}
    with network.loaded(block):
        for linear in network.linears(block):
            first, second = (work.draft.carried[f"{linear.name}|{part}"] for part in "AB")
            weight = linear.weight + second @ first
            weight = weight.T.contiguous() if linear.transposed else weight
            put[linear.name] = work.source.as_stored(linear.name, weight)
    return put
