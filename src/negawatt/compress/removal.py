"""`remove`: take inputs out of a linear layer so that its output changes least.

Structured optimal brain surgeon (Hassibi and Stork 1993; Kurtić et al. 2023, ZipLM): groups of inputs leave
one by one, always the group whose loss is least after the others have been refitted to make up for it, and
the rest of the weight is refitted by least squares on the calibration activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from negawatt.errors import ArtifactError

if TYPE_CHECKING:
    import torch

DAMPING = 0.01
"""Share of the mean second moment that is added to each, so that little text does not overfit."""


def remove(
    weight: torch.Tensor, moments: torch.Tensor, group: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove `count` groups of `group` neighbouring inputs.

    Args:
        weight: shape ``(outputs, inputs)``.
        moments: mean of products of the inputs over all tokens, shape ``(inputs, inputs)``.
        group: inputs that only leave together; divides the inputs.
        count: groups to remove, fewer than there are.

    Returns:
        The inputs that are left, ascending, and the refitted weight, shape ``(outputs, len(left))``.

    Raises:
        ArtifactError: the activations are not finite.
    """
    import torch

    n_inputs = weight.shape[1]
    damped = moments.double().clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean() + 1e-12)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise ArtifactError("the activations of a layer are not finite; the model is damaged")
    inverse, current = torch.cholesky_inverse(factor), weight.double().clone()
    left = torch.arange(n_inputs).reshape(-1, group)
    for _ in range(count):
        worst = int(_losses(current, inverse, left, group).argmin())
        gone = left[worst]
        left = torch.cat([left[:worst], left[worst + 1 :]])
        solved = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # shape (group, inputs)
        current -= current[:, gone] @ solved
        inverse -= inverse[:, gone] @ solved
    kept = left.flatten()
    return kept, current[:, kept].to(weight.dtype)


def _losses(weight: torch.Tensor, inverse: torch.Tensor, left: torch.Tensor, group: int) -> torch.Tensor:
    """What removing each group costs, after refitting the others, shape ``(len(left),)``."""
    import torch

    if group == 1:
        inputs = left.flatten()
        return weight[:, inputs].square().sum(0) / inverse.diagonal()[inputs]
    return torch.stack([
        (weight[:, g] * torch.linalg.solve(inverse[g][:, g], weight[:, g].T).T).sum() for g in left
    ])  # fmt: skip
