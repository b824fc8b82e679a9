"""What runs a model that was written, to compare it: `Speaker` for decoders, `Reader` for the rest."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings, traced

MAX_CONTEXT = 128
"""Tokens of a prompt and its answer; models made for fewer are asked for fewer."""

Call = Callable[..., Sequence[Any]]
"""A traced function: torch tensors to torch tensors."""


class Speaker(ABC):
    """A decoder that was loaded."""

    @abstractmethod
    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that it writes after `tokens`."""

    @abstractmethod
    def distributions(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Log-probabilities after each token, shape ``(len(tokens), vocabulary)``, in nats."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What really runs: the engine and its kernels."""


class Reader(ABC):
    """An encoder or a classifier that was loaded."""

    @abstractmethod
    def read(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Last hidden states, shape ``(batch, length, hidden)``; of a classifier logits, one row a text."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What really runs: the library and its kernels."""


class EngineSpeaker(Speaker):
    """A decoder in an engine's worker."""

    def __init__(self, engine: Engine, also: Mapping[str, Any]) -> None:
        self._engine, self._also = engine, also

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        return self._engine.generate([Request(tokens, count)]).completions[0].tokens

    def distributions(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self._engine.distributions(tokens)

    def info(self) -> dict[str, Any]:
        return {
            "engine": self._engine.settings.engine,
            "version": self._engine.version,
            **self._engine.info,
            **self._also,
        }


class ProgramSpeaker(Speaker):
    """A decoder that torch traced, called directly, one sequence at a time."""

    def __init__(self, call: Call, layers: Sequence[tuple[int, int]], info: dict[str, Any]) -> None:
        self._call, self._layers, self._info = call, layers, info

    def _step(
        self, tokens: Sequence[int], past: Sequence[Any], kept: int
    ) -> tuple[NDArray[np.float32], list[Any]]:
        import torch

        have = int(past[0].shape[2])
        ids = torch.tensor([list(tokens)])
        mask = torch.ones(1, have + len(tokens), dtype=torch.int64)
        places = torch.arange(have, have + len(tokens))[None]
        rows = torch.arange(len(tokens) - kept, len(tokens))
        with traced.quietly(), torch.inference_mode():
            logits, *present = self._call(ids, mask, places, rows, *past)
        return logits[0].float().numpy(), list(present)

    def _empty(self) -> list[Any]:
        import torch

        return [torch.zeros(1, heads, 0, width) for heads, width in self._layers for _ in range(2)]

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        written: list[int] = []
        fed, past = list(tokens), self._empty()
        for _ in range(count):
            logits, past = self._step(fed, past, 1)
            fed = [int(logits[-1].argmax())]
            written += fed
        return written

    def distributions(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        logits, _ = self._step(tokens, self._empty(), len(tokens))
        top = logits.max(axis=1, keepdims=True)
        result: NDArray[np.float32] = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        return result

    def info(self) -> dict[str, Any]:
        return self._info


class CallReader(Reader):
    """An encoder or a classifier as a function of token ids and mask, both numpy arrays."""

    def __init__(self, call: Callable[..., Any], info: dict[str, Any]) -> None:
        self._call, self._info = call, info

    def read(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(self._call(tokens, mask))

    def info(self) -> dict[str, Any]:
        return self._info


@contextmanager
def in_engine(
    artifact: Artifact,
    engine: str,
    weight_format: str,
    *,
    prepared: Path | None = None,
    also: Mapping[str, Any] | None = None,
) -> Iterator[EngineSpeaker]:
    """A decoder in an engine on one thread; from `prepared` where that is given.

    What `also` says is told beside what the engine says of itself.
    """
    settings = Settings(
        engine=engine, weight_format=weight_format, threads=1,
        max_context=min(MAX_CONTEXT, artifact.shape.max_context),
    )  # fmt: skip
    with Engine(artifact, settings, prepared=prepared) as opened:
        yield EngineSpeaker(opened, also or {})


def put_weights(artifact: Artifact, engine: str, weight_format: str, scratch: Path, folder: Path) -> None:
    """Let an engine make its own weights, and put them into `folder`.

    What the engine made before is copied from its cache; otherwise they are made in `scratch`.
    """
    settings = Settings(engine=engine, weight_format=weight_format, threads=1, max_context=64)
    usual = artifact.cache / engine
    kept = any(usual.glob(f"*-{weight_format}")) or (usual / f"{weight_format}.gguf").exists()
    with Engine(artifact, settings, cache=usual if kept else scratch) as opened:
        made = opened.model_path
    for file in [made] if made.is_file() else sorted(made.iterdir()):
        target = folder / ("model.gguf" if file == made else file.name)
        if file.is_relative_to(scratch):
            file.rename(target)
        else:
            shutil.copyfile(file, target)


def of_torch(call: Call) -> Callable[..., Any]:
    """A traced encoder as a function of numpy arrays."""
    import torch

    def hidden(tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> Any:
        with traced.quietly(), torch.inference_mode():
            return call(torch.from_numpy(tokens), torch.from_numpy(mask))[0].numpy()

    return hidden
