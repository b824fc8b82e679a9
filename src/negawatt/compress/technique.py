"""`Pass`: one technique that makes a smaller artifact out of an artifact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.draft import Draft
from negawatt.compress.effect import VALUES_ONLY, Effect, Situation
from negawatt.compress.parameter import Parameter, values_of
from negawatt.compress.source import Source

if TYPE_CHECKING:
    import torch

    from negawatt.compress.network import Network

Progress = Callable[[float, float | None, str], None]
"""Called with (done, total or None, what is being done)."""


@dataclass(frozen=True)
class Work:
    """What a pass works with.

    Attributes:
        source: the artifact as it comes in; read-only.
        draft: the artifact as it will come out: it begins as the source, and the pass replaces,
            renames and drops tensors in it, step by step.
        tokens: calibration windows, int64, shape ``(windows, length)``; None for a pass that
            declares that it needs none.
        text: reference of the text, as `calibration` takes it, for a pass that must see all of it.
        seed: the only source of randomness.
        progress: called often enough for a progress bar.
    """

    source: Source
    draft: Draft
    tokens: torch.Tensor | None
    text: str
    seed: int
    progress: Progress

    def network(self) -> Network:
        """The source's modules, whose weights are loaded one block at a time."""
        from negawatt.compress.network import Network

        return Network(self.source)


class Pass(ABC):
    """A technique with its parameters; subclasses are final and live in a file of their own.

    Attributes:
        name: what the user types.
        summary: one line for ``--help`` and tables.
        parameters: every knob, with defaults and search ranges.
        calibrated: whether it needs text; a calibrated pass is compared with `fallback`.
        reads_usage: whether it needs to know what the model is used for, in full.
        packs: whether its result is a packed grid, which engines that have it run as it is.
        factors: whether its result has matrices in two factors.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    calibrated: ClassVar[bool] = False
    reads_usage: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    factors: ClassVar[bool] = False

    def __init__(self, **values: Any) -> None:
        """Raises:
        UsageError: a value is not allowed, or no parameter has that name.
        """
        self.values = values_of(self.parameters, values, self.name)

    def check(self, source: Source) -> None:  # noqa: B027 - most passes take any model
        """Refuse a source that this pass cannot work on, before anything is computed.

        Raises:
            UsageError: a parameter does not fit the model's dimensions.
            ArtifactError: the model has a kind of layer that the pass does not know.
        """

    @abstractmethod
    def apply(self, work: Work) -> None:
        """Turn `work.draft` into the result.

        The same work gives the same bits. It runs in steps: whatever `work.draft.keep` has kept is
        there again after a kill, and a step that `work.draft.kept` knows is not done again.
        """

    def fallback(self) -> Pass | None:
        """The plain technique that this one must beat on held-out text to be worth its joules."""
        return None

    def effect(self, at: Situation) -> Effect:
        """What this pass, with its parameters, would change in what a decoding step needs there."""
        return VALUES_ONLY

    def __str__(self) -> str:
        """As on the command line: ``NAME:key=value,…`` with the values that are not defaults."""
        changed = [f"{p.name}={self.values[p.name]}" for p in self.parameters
                   if self.values[p.name] != p.default]  # fmt: skip
        return self.name + (":" + ",".join(changed) if changed else "")
