"""Training decoders on windows of text: what `heal` and `distil` share.

What is learnt is either all weights of the blocks and what lies behind them, or low-rank additions to the
linear layers of the blocks (Hu et al. 2022, LoRA), merged when done. What is to be learnt is a teacher's
distribution over the next token, the text itself, or some of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negawatt.compress.network import Linear, Network, half_is_fast
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.teacher import STEP, ask_about_windows, bridge, divergence, unlike
from negawatt.compress.technique import Work
from negawatt.compress.training import chosen, is_done, losses, train

if TYPE_CHECKING:
    import torch

TEMPERATURE = Parameter(
    "temperature", 2.0, "softens both distributions; above 1 unlikely answers count more",
    low=0.0, high=100.0, open=True, search=(1.0, 2.0, 4.0),
)  # fmt: skip
TOP_K = Parameter("top_k", 64, "likeliest tokens of the teacher that are kept, of a decoder", low=1)
HIDDEN = Parameter("hidden", 0.0, "weight of the teacher's last hidden states", low=0.0, high=100.0)
BRIDGE = "hidden|bridge"


@dataclass(frozen=True)
class Lesson:
    """What is learnt from.

    Attributes:
        teacher: None where the text alone is learnt.
        temperature, top_k: of what the teacher says, see `negawatt.compress.teacher`.
        hidden: weight of the teacher's hidden states.
        text: weight of the text itself, from 0 to 1; the teacher has the rest.
        steps, batch: training steps, and windows in each.
        rate: the highest learning rate.
        precision: of weights that are not learnt.
    """

    teacher: Source | None
    temperature: float
    top_k: int
    hidden: float
    text: float
    steps: int
    batch: int
    rate: float
    precision: str = "bfloat16"


def learn_all(work: Work, lesson: Lesson) -> None:
    """Train every weight but those of embeddings; a head that is tied to one stays too."""
    import torch

    network = work.network()
    names = network.checkpoint_names
    embeddings = {names[f"{path}.weight"] for path, module in network.model.named_modules()
                  if isinstance(module, torch.nn.Embedding)}  # fmt: skip

    def learnt(model: Any) -> dict[str, torch.Tensor]:
        found = {}
        for path, parameter in model.named_parameters():
            if names[path] not in embeddings:
                parameter.requires_grad_(True)
                found[names[path]] = parameter
        return found

    _run(work, network, lesson, learnt, torch.float32)
    for block in [*range(len(network.blocks)), None]:
        step = "merge outer" if block is None else f"merge {block}"
        if work.draft.kept(step) is None:
            part = network.outer if block is None else network.names(block)
            carried = {name: work.draft.carried[name] for name in part.values() if name in work.draft.carried}
            work.draft.keep(step, {n: work.source.as_stored(n, v) for n, v in carried.items()})


def learn_additions(work: Work, lesson: Lesson, rank: int) -> None:
    """Train low-rank additions to the linear layers of all blocks, and merge them."""
    import torch

    network, draft = work.network(), work.draft
    additions = Additions(network, rank, work.seed)

    def learnt(model: Any) -> dict[str, torch.Tensor]:
        additions.attach()
        return additions.values

    _run(work, network, lesson, learnt, getattr(torch, lesson.precision))
    for block in range(len(network.blocks)):
        if draft.kept(f"merge {block}") is None:
            work.progress(block, len(network.blocks), "merging")
            draft.keep(f"merge {block}", merged(work, network, block))


def _run(
    work: Work, network: Network, lesson: Lesson, learnt: Callable[[Any], dict[str, Any]], precision: Any
) -> None:
    """Ask the teacher, and train what `learnt` names of the loaded model."""
    said = asked(work, lesson)
    if not is_done(work.draft, lesson.steps):
        across = None
        if "hidden" in said:
            across = bridge(network.model.config.hidden_size, said["hidden"].shape[-1], work.seed)
        with network.whole(precision) as model:
            values = learnt(model) | ({} if across is None else {BRIDGE: across})
            train(
                work.draft, values, step_of(model, work, lesson, said, across), steps=lesson.steps,
                rate=lesson.rate, progress=work.progress,
            )  # fmt: skip
    work.draft.outcome |= losses(work.draft, lesson.steps)


def asked(work: Work, lesson: Lesson) -> dict[str, torch.Tensor]:
    """What the teacher says of the windows; nothing without a teacher."""
    import torch

    if lesson.teacher is None:
        return {}
    work.draft.outcome["teacher_sha256"] = lesson.teacher.identity
    ask_about_windows(
        work, lesson.teacher, top_k=lesson.top_k, temperature=lesson.temperature,
        with_hidden=lesson.hidden > 0, precision=getattr(torch, lesson.precision),
    )  # fmt: skip
    work.draft.outcome["teacher"] = work.draft.kept(STEP)
    return work.draft.aside(STEP)


def step_of(
    model: Any, work: Work, lesson: Lesson, said: dict[str, torch.Tensor], across: Any = None
) -> Callable[[int], float]:
    """A training step on windows: sends the gradients back, and gives the loss in nats a token."""
    assert work.tokens is not None
    tokens, seed = work.tokens, work.seed

    def step(number: int) -> float:
        loss = 0.0
        places = chosen(number, lesson.batch, len(tokens), seed)
        for place in places:  # one window at a time: the logits are the largest thing in memory
            row = {name: value[place] for name, value in said.items()}
            part = window_loss(model, tokens[place], row, lesson, across) / len(places)
            part.backward()
            loss += part.item()
        return loss

    return step


def window_loss(
    model: Any, row: torch.Tensor, said: dict[str, torch.Tensor], lesson: Lesson, across: Any = None
) -> torch.Tensor:
    """The loss of a window in nats a token: the text's own, the teacher's, or some of both."""
    import torch

    half = half_is_fast() and lesson.precision == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = model(input_ids=row[None], use_cache=False, output_hidden_states="hidden" in said)
    logits = found.logits[0, :-1].float()
    total = torch.zeros(())
    if lesson.text or not said:
        text = torch.nn.functional.cross_entropy(logits, row[1:])
        total = total + (lesson.text if said else 1.0) * text
    if said and lesson.text < 1:
        kl = divergence(logits, said["ids"], said["log_probs"], said["others"], lesson.temperature)
        total = total + (1 - lesson.text) * kl
    if "hidden" in said:
        ours = found.hidden_states[-1][0, :-1]
        ours = ours if across is None else ours.float() @ across.T
        total = total + lesson.hidden * unlike(ours, said["hidden"])
    return total


class Additions:
    """``B A`` for every linear layer of the blocks.

    Attributes:
        values: the factors, by the layer's name and ``|A`` or ``|B``.
    """

    def __init__(self, network: Network, rank: int, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.values: dict[str, torch.Tensor] = {}
        self._linears: list[Linear] = []
        for block in range(len(network.blocks)):
            for linear in network.linears(block):
                self._linears.append(linear)
                first = torch.randn(rank, linear.inputs, generator=generator) / math.sqrt(linear.inputs)
                self.values[f"{linear.name}|A"] = first.requires_grad_(True)
                self.values[f"{linear.name}|B"] = torch.zeros(linear.outputs, rank).requires_grad_(True)

    def attach(self) -> None:
        """Add to what the layers of the loaded model give."""
        for linear in self._linears:
            adding = _adding(self.values[f"{linear.name}|A"], self.values[f"{linear.name}|B"])
            linear.module.register_forward_hook(adding)


def _adding(first: torch.Tensor, second: torch.Tensor) -> Callable[..., torch.Tensor]:
    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        given = inputs[0]
        return output + (given @ first.to(given.dtype).T) @ second.to(given.dtype).T

    return add


def merged(work: Work, network: Network, block: int) -> dict[str, torch.Tensor]:
    """The weights of a block with their additions, in the types in which they are stored."""
    put = {}
    with network.loaded(block):
        for linear in network.linears(block):
            first, second = (work.draft.carried[f"{linear.name}|{part}"] for part in "AB")
            weight = linear.weight + second @ first
            weight = weight.T.contiguous() if linear.transposed else weight
            put[linear.name] = work.source.as_stored(linear.name, weight)
    return put
