"""`Training`: values learnt step by step with Adam, kept on disk so that a kill loses little.

One loop for every pass that trains: the pass says what is learnt and what a step's loss is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from negawatt.compress.draft import Draft
from negawatt.compress.technique import Progress
from negawatt.errors import NegawattError

if TYPE_CHECKING:
    import torch

STEPS_KEPT = 16
"""Fewest training steps between two checkpoints."""
MOST_KEPT = 16
"""Most checkpoints of one training: what is learnt may be large."""
WARM_UP = 0.1
"""Share of the steps over which the rate rises, before it falls along a cosine."""
BETAS = (0.9, 0.95)


def checkpoints(steps: int) -> list[int]:
    """The numbers of steps done after which a training is kept."""
    every = max(STEPS_KEPT, -(-steps // MOST_KEPT))
    return [*range(every, steps, every), steps]


def rate_at(step: int, steps: int, highest: float) -> float:
    """The learning rate of a step."""
    share = (step + 1) / steps
    return highest * min(1.0, share / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass
class Adam:
    """Adam (Kingma and Ba 2015), which can be written down and taken up again.

    Attributes:
        values: what is learnt: leaves that gradients reach.
        moments: of the gradients, by ``m|NAME`` and ``v|NAME``.
        count: steps done.
    """

    values: Mapping[str, torch.Tensor]
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    count: int = 0

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state`; nothing in it begins anew."""
        import torch

        self.moments = {
            f"{kind}|{key}": state.get(f"{kind}|{key}", torch.zeros_like(value))
            for kind in ("m", "v")
            for key, value in self.values.items()
        }
        if "count" in state:
            self.count = int(state["count"][0])
            with torch.no_grad():
                for key, value in self.values.items():
                    value.copy_(state[key])

    def update(self, rate: float) -> None:
        """One step with the gradients at hand."""
        import torch

        self.count += 1
        slow, slower = BETAS
        with torch.no_grad():
            for key, value in self.values.items():
                if value.grad is None:
                    continue
                mean, square = self.moments[f"m|{key}"], self.moments[f"v|{key}"]
                mean.lerp_(value.grad, 1 - slow)
                square.mul_(slower).addcmul_(value.grad, value.grad, value=1 - slower)
                scale = (square / (1 - slower**self.count)).sqrt_().add_(1e-8)
                value.addcdiv_(mean, scale, value=-rate / (1 - slow**self.count))

    def clear(self) -> None:
        """Forget the gradients."""
        for value in self.values.values():
            value.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        values = {key: value.detach() for key, value in self.values.items()}
        return {"count": torch.tensor([self.count]), **values, **self.moments}


class Companion(Protocol):
    """What goes along with a training, such as a choice of ranks, and is kept with its checkpoints."""

    def after(self, step: int) -> None:
        """Called when a step has changed the values, with its gradients still at hand."""

    def state(self) -> dict[str, torch.Tensor]:
        """What `restore` needs, by names that no value has."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what a checkpoint holds."""


def is_done(draft: Draft, steps: int) -> bool:
    """Whether a training of so many steps is kept to its end."""
    return draft.kept(f"step {steps}") is not None


def losses(draft: Draft, steps: int) -> dict[str, float]:
    """The mean losses of the first and the last stretch between checkpoints, for the lineage."""
    found = [(draft.kept(f"step {end}") or {})["loss"] for end in checkpoints(steps)]
    return {"loss_first": found[0], "loss_last": found[-1]}


def train(
    draft: Draft,
    values: Mapping[str, torch.Tensor],
    loss: Callable[[int], float],
    *,
    steps: int,
    rate: float,
    progress: Progress,
    companion: Companion | None = None,
) -> None:
    """Learn, from the last checkpoint on.

    Args:
        draft: where checkpoints are kept, as steps called ``step N`` whose carry holds the values.
        values: what is learnt, by name; changed in place, and restored from a checkpoint first.
        loss: computes the loss of a step and sends its gradients back.
        steps: in all.
        rate: the highest learning rate.
        progress: told of every step.
        companion: what goes along.

    Raises:
        NegawattError: the loss is no longer a number.
    """
    adam = Adam(values)
    known = draft.carried if any(draft.kept(f"step {end}") for end in checkpoints(steps)) else {}
    adam.restore(known)
    if companion is not None and known:
        companion.restore(known)
    done = 0
    for end in checkpoints(steps):
        if draft.kept(f"step {end}") is None:
            mean = 0.0
            for step in range(done, end):
                progress(step, steps, "training")
                found = loss(step)
                if not math.isfinite(found):
                    raise NegawattError(
                        f"the training fell apart in step {step + 1}: its loss is no number any more; "
                        f"lower the rate from {rate:g}"
                    )
                mean += found / (end - done)
                adam.update(rate_at(step, steps, rate))
                if companion is not None:
                    companion.after(step)
                adam.clear()
            also = {} if companion is None else companion.state()
            draft.keep(f"step {end}", carry=adam.state() | also, facts={"loss": mean})
        done = end


def chosen(step: int, batch: int, n: int, seed: int) -> list[int]:
    """Which of `n` examples a step sees; every one is seen once before any is seen again."""
    import torch

    found = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, at = divmod(place, n)
        generator = torch.Generator().manual_seed(seed + epoch)
        found.append(int(torch.randperm(n, generator=generator)[at]))
    return found


def batches(lengths: Sequence[int], size: int, epochs: int, seed: int) -> list[list[int]]:
    """The examples of every step of some epochs: at random, but of similar length where they meet.

    Examples are drawn a few batches at a time and sorted by length within those, so that little is
    padded; the batches are then shuffled again.
    """
    import torch

    found: list[list[int]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        steps = []
        for start in range(0, len(order), 16 * size):
            part = sorted(order[start : start + 16 * size], key=lambda i: lengths[i])
            steps += [part[at : at + size] for at in range(0, len(part), size)]
        found += [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
    return found
