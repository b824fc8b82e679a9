"""`Backend`: what an adapter to an inference library must do, inside the worker process.

One verb carries everything: `Backend.forward` feeds tokens to some sequences and returns logits.
Prefill, decoding, scoring and speculative verification are all calls of it, so the loop that
samples, stops, streams and batches is written once (`negawatt.engine.decode`) and a server can
attribute the energy of each step to the sequences that were in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.pooling import Pooling
from negawatt.engine.device import Device
from negawatt.engine.settings import Settings
from negawatt.errors import UnsupportedSetting

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens appended to one sequence in one step.

    Attributes:
        slot: which sequence, from 0 up to ``settings.batch``, or what `Backend.reserve` said.
        tokens: one or more token ids that follow what the slot holds already.
        rows: how many rows of logits to return: those after each of the last `rows` tokens
            (1: after the last token only; ``len(tokens)``: after every token).
    """

    slot: int
    tokens: Sequence[int]
    rows: int = 1


def in_parts(
    chunks: Sequence[Chunk], most: int, step: Callable[[Sequence[Chunk]], list[Logits]]
) -> list[Logits]:
    """Feed chunks through `step`, at most `most` tokens at a time, split between and inside chunks.

    Where they fit into one step, its arrays are returned as they are; else they are copied, since each
    step may reuse their memory.
    """
    if sum(len(chunk.tokens) for chunk in chunks) <= most:
        return step(chunks)
    rows: list[list[Logits]] = [[] for _ in chunks]
    part: list[Chunk] = []
    owners: list[int] = []

    def feed() -> None:
        for owner, logits in zip(owners, step(part), strict=True):
            rows[owner].append(logits.copy())
        part.clear()
        owners.clear()

    for number, chunk in enumerate(chunks):
        start = 0
        while start < len(chunk.tokens):
            room = most - sum(len(c.tokens) for c in part)
            tokens = chunk.tokens[start : start + room]
            start += len(tokens)
            after = len(chunk.tokens) - start
            part.append(Chunk(chunk.slot, tokens, max(0, min(len(tokens), chunk.rows - after))))
            owners.append(number)
            if len(tokens) == room:
                feed()
    if part:
        feed()
    return [np.concatenate(found) for found in rows]


class Backend(ABC):
    """An inference library holding one loaded model and ``settings.batch`` sequence slots.

    Class attributes (what the engine has; settings are checked against them by name):
        name: the engine's name.
        weight_formats: names it can run, ``native`` first.
        starting_formats: where a search of its formats best begins, one of each kind.
        plain_formats: those whose weights its kernels take as files lay them out, at some times the cost.
        encoder_formats: those that pay where whole texts run at once, and are searched unasked only there.
        searched: whether a search that names no engines tries this one.
        kv_caches: names it can run, ``default`` first.
        devices: names it can run on, ``cpu`` first; which of them are here `accelerators` tells.
        has_builds: whether other devices than the processor take another build of the library, which a
            process that made weights by the first one cannot load.
        has_gpu_layers: whether part of a model can run on such a device, the rest on the processor.
        has_flash_attention: whether the flash-attention switch does anything.
        has_speculation: whether `truncate` works, which n-gram speculation needs.
        has_drafts: whether a second, small model can propose for the first, see `refuse_draft`.
        embeds: whether it can turn texts into vectors.
        classifies: whether it runs classifiers of texts.
        shares: whether `reserve` and `share` work: more slots than are decoded at once, over one pool of
            cells, in which the beginning of one sequence can be that of another.
        ragged: whether slots advance independently. When False (lockstep), the first step after
            all slots are empty prefills every sequence of a static batch at once, later steps
            give exactly one token to each slot not yet released, and no slot is filled again
            until all are released.
    """

    name: ClassVar[str]
    weight_formats: ClassVar[tuple[str, ...]] = ("native",)
    starting_formats: ClassVar[tuple[str, ...]] = ("native",)
    plain_formats: ClassVar[tuple[str, ...]] = ()
    encoder_formats: ClassVar[tuple[str, ...]] = ()
    searched: ClassVar[bool] = True
    kv_caches: ClassVar[tuple[str, ...]] = ("default",)
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    has_builds: ClassVar[bool] = False
    has_gpu_layers: ClassVar[bool] = False
    has_flash_attention: ClassVar[bool] = False
    has_speculation: ClassVar[bool] = False
    has_drafts: ClassVar[bool] = False
    classifies: ClassVar[bool] = False
    embeds: ClassVar[bool] = False
    shares: ClassVar[bool] = False
    ragged: ClassVar[bool] = False

    vocab_size: int
    """Length of a row of logits; set by `load`."""

    labels: tuple[str, ...] = ()
    """Of a classifier what its outputs stand for, set by `load`: each chunk is then a whole text, whose one
    row holds a logit for each label. Empty where the model writes text."""

    pooling: Pooling | None = None
    """Of a model that embeds texts how, set by `load`: each chunk is then a whole text, whose one row is its
    vector, of length `vocab_size`. None where the model writes or labels text."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.check(settings)

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Refuse by name what this engine lacks.

        Raises:
            UnsupportedSetting: the sentence names the setting and what the engine has.
        """

        def refuse(what: str, value: object, has: Sequence[str]) -> None:
            raise UnsupportedSetting(f"{cls.name} has no {what} {value!r}; it has {', '.join(has)}")

        if settings.gpu_layers is not None and not cls.has_gpu_layers:
            raise UnsupportedSetting(
                f"{cls.name} runs all layers of a model in one place and takes no gpu_layers; "
                "llamacpp and transformers do"
            )
        if settings.device not in cls.devices:
            refuse("device", settings.device, cls.devices)
        if settings.gpu_layers and settings.device == "cpu":
            raise UnsupportedSetting(
                f"{cls.name} can run {settings.gpu_layers} layers elsewhere than on the processor only if "
                f"the device is named; it has {', '.join(cls.devices[1:])}"
            )
        if settings.weight_format not in cls.weight_formats:
            refuse("weight format", settings.weight_format, cls.weight_formats)
        if settings.kv_cache not in cls.kv_caches:
            refuse("KV-cache precision", settings.kv_cache, cls.kv_caches)
        if settings.flash_attention is not None and not cls.has_flash_attention:
            raise UnsupportedSetting(f"{cls.name} has no flash-attention switch")
        if settings.pooling != "default" and not cls.embeds:
            raise UnsupportedSetting(
                f"{cls.name} makes no embeddings; transformers, openvino and onnxruntime do"
            )
        if settings.speculation != "none" and not cls.has_speculation:
            raise UnsupportedSetting(f"{cls.name} has no speculative decoding")
        if settings.speculation != "none" and settings.batch > 1 and not cls.ragged:
            raise UnsupportedSetting(f"{cls.name} speculates at batch 1 only, not at batch {settings.batch}")
        if settings.draft is not None and not cls.has_drafts:
            raise UnsupportedSetting(f"{cls.name} cannot run a draft model beside the model; llamacpp can")
        if settings.draft is not None and settings.batch > 1:
            raise UnsupportedSetting(f"a draft model proposes at batch 1 only, not at batch {settings.batch}")

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Version of the underlying library.

        Raises:
            MissingDependency: it is not installed.
        """

    @classmethod
    def accelerators(cls) -> list[Device]:
        """The devices beside the processor that the library finds on this machine.

        Asked in a process of its own where asking can fail hard.

        Raises:
            NegawattError: it lacks something for that, or cannot tell: why, and after a ";" what to do.
        """
        return []

    @classmethod
    @abstractmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        """Make the file or folder that `load` opens, in `cache`, unless it is there already.

        Runs in the worker process; may take long; leaves nothing half-written. `artifact_path` is
        an `negawatt.artifact.Artifact` folder. The returned path lies in `cache` or in the artifact.

        Raises:
            EngineError: the engine cannot run this architecture or format (named).
        """

    @abstractmethod
    def load(self, path: Path) -> None:
        """Load the model that `prepare` made and allocate the slots."""

    @abstractmethod
    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """Feed tokens; return for each chunk float32 logits of shape ``(chunk.rows, vocab_size)``.

        The arrays may be views that are only valid until the next call.
        """

    @abstractmethod
    def release(self, slot: int) -> None:
        """Forget the slot's sequence."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything after the first `length` tokens of the slot's sequence."""
        raise UnsupportedSetting(f"{self.name} cannot take tokens back")

    def refuse_draft(self, draft: Backend) -> None:
        """Let a loaded model of the same engine propose tokens to this one only if it means the same by them.

        Raises:
            EngineError: its token ids stand for other texts.
        """
        raise UnsupportedSetting(f"{self.name} cannot run a draft model beside the model")

    def reserve(self, slots: int, tokens: int) -> None:
        """To be called before `load`: hold `slots` sequences, which together hold up to `tokens` tokens."""
        raise UnsupportedSetting(f"{self.name} has no cache that sequences share")

    def share(self, source: int, target: int, length: int) -> None:
        """Let the empty slot `target` begin with the first `length` tokens of `source`, without a copy."""
        raise UnsupportedSetting(f"{self.name} has no cache that sequences share")

    def info(self) -> dict[str, object]:
        """What really runs, for the record: build, kernels, instruction set."""
        return {}
