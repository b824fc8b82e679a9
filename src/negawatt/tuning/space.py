"""`Space`: the ways of running a model that the search may try."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.engine import BACKENDS, Settings, engines
from negawatt.engine.backends import backend
from negawatt.errors import UsageError
from negawatt.tuning.candidate import Candidate

BATCHES = (1, 4, 8, 16, 32, 64)
"""Batches tried where the batch is free."""

Choose = Callable[[str, Sequence[Any]], Any]
"""Picks one of the choices of a named dimension."""


@dataclass(frozen=True)
class Space:
    """A conditional space: the engine first, then what that engine has.

    Attributes:
        engines: names of the engines to consider.
        batches: batch sizes to consider.
        threads: thread counts to consider.
        max_context: of every candidate.
        weight_formats: engine → formats to consider; all that the engine has where it is absent.
    """

    engines: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    max_context: int
    weight_formats: Mapping[str, tuple[str, ...]]

    @classmethod
    def default(
        cls, *, batches: Sequence[int] = (1,), max_context: int = 1024, only: Sequence[str] | None = None
    ) -> Space:
        """Every engine installed here that is searched unasked, or those named; one thread, and all cores.

        Raises:
            UsageError: an engine is unknown, or none can run here.
        """
        names = list(only) if only else [name for name in sorted(BACKENDS) if backend(name).searched]
        for name in names:
            backend(name)
        usable = [e["name"] for e in engines(names) if e["status"] == "ok"]
        if not usable:
            raise UsageError(f"none of the engines {', '.join(names)} can run here; see: negawatt doctor")
        cores = len(os.sched_getaffinity(0))
        return cls(tuple(usable), tuple(batches), tuple(sorted({1, cores})), max_context, {})

    def pick(self, choose: Choose) -> Candidate:
        """One point of the space, each dimension picked by `choose`.

        Names of dimensions carry the engine's, since what they offer depends on it.
        """
        name = choose("engine", self.engines)
        engine = backend(name)
        speculation = ("none", "ngram") if engine.has_speculation else ("none",)
        settings = Settings(
            engine=name,
            max_context=self.max_context,
            weight_format=choose(f"{name}.weight_format", self.formats(name)),
            threads=choose("threads", self.threads),
            batch=choose("batch", self.batches),
            kv_cache=choose(f"{name}.kv_cache", _distinct_kv(engine.kv_caches)),
        )
        if len(speculation) > 1 and settings.batch == 1:
            settings = settings.replace(speculation=choose(f"{name}.speculation", speculation))
        return Candidate(settings)

    def formats(self, engine: str) -> tuple[str, ...]:
        return self.weight_formats.get(engine, backend(engine).weight_formats)

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """The choices that lead to `candidate`: dimension → value.

        Raises:
            UsageError: it lies outside the space.
        """
        settings = candidate.settings
        wanted = {
            "engine": settings.engine,
            "threads": settings.threads,
            "batch": settings.batch,
            f"{settings.engine}.weight_format": settings.weight_format,
            f"{settings.engine}.kv_cache": settings.kv_cache,
            f"{settings.engine}.speculation": settings.speculation,
        }
        chosen: dict[str, Any] = {}

        def choose(name: str, choices: Sequence[Any]) -> Any:
            if wanted[name] not in choices:
                raise UsageError(f"{name} {wanted[name]!r} is not in the space")
            chosen[name] = wanted[name]
            return wanted[name]

        self.pick(choose)
        return chosen

    def grid(self) -> Iterator[Candidate]:
        """Every point of the space, each once."""
        pending: list[tuple[Any, ...]] = [()]
        while pending:
            prefix = pending.pop()
            taken = iter(prefix)
            offered: list[Sequence[Any]] = []

            def choose(
                _name: str, choices: Sequence[Any], taken: Iterator[Any] = taken, offered: list[Any] = offered
            ) -> Any:
                value = next(taken, None)
                if value is None:
                    offered.append(choices)
                    return choices[0]
                return value

            candidate = self.pick(choose)
            if not offered:
                yield candidate
            else:
                pending += [(*prefix, choice) for choice in reversed(offered[0])]

    def starts(self, without: str | None = None) -> list[Candidate]:
        """Where the search begins: on the fewest threads, each engine with one format of each kind.

        In the largest batch, where the weights are read once for the most tokens.

        Args:
            without: an engine that is known already, because the baseline runs on it.
        """
        batch = max(self.batches)
        rows = []
        for name in self.engines:
            if name == without and len(self.engines) > 1:
                continue
            formats = [f for f in backend(name).starting_formats if f in self.formats(name)]
            rows.append([self._start(name, f, batch) for f in formats or self.formats(name)[:1]])
        turns = itertools.zip_longest(*rows)  # every engine once, then every engine again
        return [candidate for turn in turns for candidate in turn if candidate is not None]

    def _start(self, engine: str, weight_format: str, batch: int) -> Candidate:
        wanted = {"engine": engine, f"{engine}.weight_format": weight_format, "batch": batch}
        return self.pick(lambda name, choices: wanted.get(name, choices[0]))

    def to_json(self) -> dict[str, Any]:
        return {
            "engines": list(self.engines),
            "batches": list(self.batches),
            "threads": list(self.threads),
            "max_context": self.max_context,
            "weight_formats": {name: list(self.formats(name)) for name in self.engines},
        }


def _distinct_kv(names: Sequence[str]) -> list[str]:
    """``f16`` is the default's precision on every engine here; trying both would try one thing twice."""
    return [n for n in names if n != "f16"]
