"""`Space`: the ways of running a model that the search may try."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from negawatt.compress.effect import FACTORED_ENGINES, PACKED_ENGINES
from negawatt.engine import BACKENDS, Settings, engines
from negawatt.engine.backend import Backend
from negawatt.engine.backends import accelerator_of, backend
from negawatt.engine.cores import Cores
from negawatt.engine.settings import DRAFT
from negawatt.errors import UsageError
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.pass_range import Choose, PassRange

BATCHES = (1, 4, 8, 16, 32, 64)
"""Batches tried where the batch is free."""
USUAL_PASSES = ("gptq:bits=4,group=32,symmetric=true,clip=true,damping=0.05,align=0,embeddings=8",)
"""Passes considered unasked: what keeps more of a model's quality in as few bytes as engines' own formats
do, made in the least time (without `align`). Passes that fit a model to a workload (vocabulary), or lose more
than a point of quality without training (depth, width), are asked for."""
CLASSIFIER_PASSES = ("smoothquant:alpha=0.5,tolerance=0.01,embeddings=8",)
"""The same for classifiers, which are bound by arithmetic: weights and inputs of 8 bits."""
AS_DEFAULT = ("f16", "bf16")
"""Caches that the default's is one of, bf16 where the processor computes in it: it would be tried twice."""
FLASH = {"default": None, "on": True, "off": False}
"""Flash attention as a space names it."""

ALL = -1
"""As a number of layers: as many as the model has; `negawatt.tuning.placements` puts that in its place."""


@dataclass(frozen=True)
class Space:
    """A conditional space: the engine first, then what that engine has and can run.

    Attributes:
        engines: names of the engines to consider.
        batches: batch sizes to consider.
        threads: thread counts to consider.
        max_context: of every candidate.
        weight_formats: engine → formats to consider; all that the engine has where it is absent.
        models: names of the models to consider; "" is the one that the baseline runs.
        passes: that may make the weights smaller, in the order in which they are applied.
        kv_caches: engine → KV-cache precisions to consider; all that differ where it is absent.
        speculation: ways of speculating to consider, on engines that can.
        drafts: small models that may propose, see `Settings`, on engines that run them at batch 1.
        flash_attention: of `FLASH`, on engines that have the switch.
        cores: number of threads → where to keep them, out of `negawatt.engine.cores.CHOICES`; wherever the
            kernel puts them where it is absent.
        limits: dimension → limits to try, 0 for none: ``power_caps_w`` of each package, ``clocks_mhz`` of
            each processor, and with ``gpu_`` before them those of GPUs, for candidates with layers there.
            What is absent is left to the search, see `negawatt.tuning.limited`.
        gpu_layers: engine → numbers of layers on its accelerator, 0 for none; None leaves that to the search,
            see `negawatt.tuning.placements`.
        unasked: the engines are those that are searched where none are named.
    """

    engines: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    max_context: int
    weight_formats: Mapping[str, tuple[str, ...]]
    models: tuple[str, ...] = ("",)
    passes: tuple[PassRange, ...] = ()
    kv_caches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    speculation: tuple[str, ...] = ("none", "ngram")
    drafts: tuple[str, ...] = ()
    flash_attention: tuple[str, ...] = ("default",)
    cores: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    gpu_layers: Mapping[str, tuple[int, ...]] | None = None
    unasked: bool = False

    def __post_init__(self) -> None:
        names = [each.name for each in self.passes]
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise UsageError(f"{twice} is given twice; give it once, with all its values")
        required = [each for each in self.passes if each.required]
        if len(packing := [each.name for each in required if each.technique.packs]) > 1:
            raise UsageError(f"{' and '.join(packing)} are both required, and weights are packed only once")
        for each in required:
            able = _able(each)
            if unable := [name for name in self.engines if name not in able]:
                raise UsageError(
                    f"{each.name} is required, and {unable[0]} does not run what it makes; "
                    f"{' and '.join(able)} do: name the engines, or do not require it"
                )

    @classmethod
    def default(
        cls,
        *,
        batches: Sequence[int] = (1,),
        max_context: int = 1024,
        only: Sequence[str] | None = None,
        models: Sequence[str] = ("",),
        passes: Sequence[PassRange] | None = None,
    ) -> Space:
        """Every engine installed here that is searched unasked, or those named.

        With one thread, and all cores; where cores differ, also as many as are alike, kept there.

        With `USUAL_PASSES`, where what they need is installed, unless `passes` are given.

        Raises:
            UsageError: an engine is unknown, or none can run here.
        """
        if passes is None:
            able = all(find_spec(name) for name in ("torch", "transformers"))
            passes = [PassRange.parse(each) for each in USUAL_PASSES if able]
        cores = Cores.here()
        threads = cores.counts() or (1, len(os.sched_getaffinity(0)))
        return cls(
            usable(only), tuple(batches), tuple(sorted(set(threads))), max_context, {},
            models=tuple(models), passes=tuple(passes), cores=core_choices(cores, threads),
            unasked=only is None,
        )  # fmt: skip

    def of_classifiers(self) -> Space:
        """The same for models that label texts: no cache, nothing speculated, only engines that run them.

        Where none were named these are all that can run here, and of names for one and the same weights
        one is tried. `USUAL_PASSES` give way to `CLASSIFIER_PASSES`.

        Raises:
            UsageError: no engine is left.
        """
        return self._of_encoders("classifiers of texts", lambda engine: engine.classifies)

    def of_embedders(self) -> Space:
        """The same for models that turn texts into vectors.

        Raises:
            UsageError: no engine is left.
        """
        return self._of_encoders("models that embed", lambda engine: engine.embeds)

    def _of_encoders(self, what: str, runs: Callable[[type[Backend]], bool]) -> Space:
        able = [name for name in sorted(BACKENDS) if runs(backend(name))]
        engines = usable(able) if self.unasked else tuple(name for name in self.engines if name in able)
        if not engines:
            raise UsageError(f"{', '.join(self.engines)} runs no {what}; {', '.join(able)} do")
        passes = self.passes
        if passes and passes == tuple(map(PassRange.parse, USUAL_PASSES)):
            passes = tuple(map(PassRange.parse, CLASSIFIER_PASSES))
        plain = {name: tuple(f for f in backend(name).weight_formats if f != "native") for name in engines}
        return replace(
            self, engines=engines, passes=passes, weight_formats={**plain, **self.weight_formats},
            kv_caches=dict.fromkeys(engines, ("default",)), speculation=("none",), drafts=(),
            flash_attention=("default",),
        )  # fmt: skip

    def pick(self, choose: Choose) -> Candidate:
        """One point of the space, each dimension picked by `choose`.

        Names of dimensions carry the engine's, where what they offer depends on it.
        """
        name = choose("engine", self.engines)
        engine = backend(name)
        model = choose("model", self.models) if len(self.models) > 1 else self.models[0]
        passes, packed = self._pick_passes(name, choose)
        formats = self._formats_of_made(name) if passes else self.formats(name)
        settings = Settings(
            engine=name,
            max_context=self.max_context,
            weight_format="native" if packed else choose(f"{name}.weight_format", formats),
            threads=choose("threads", self.threads),
            batch=choose("batch", self.batches),
            kv_cache=choose(f"{name}.kv_cache", self.caches(name)),
        )
        layers = (self.gpu_layers or {}).get(name)
        if any(each.partition(":")[0] == "depth" for each in passes):
            layers = None  # it leaves fewer layers than are counted
        if layers and (number := choose(f"{name}.gpu_layers", layers)):
            settings = settings.replace(device=accelerator_of(name), gpu_layers=number)
        if (kept := self.cores.get(settings.threads or 0, ("default",))) != ("default",):
            settings = settings.replace(cores=choose("threads.cores", kept))
        if engine.has_flash_attention and self.flash_attention != ("default",):
            offered = [f for f in self.flash_attention if f != "off" or settings.kv_cache == "default"]
            chosen = choose(f"{name}.flash_attention", offered or ["default"])
            settings = settings.replace(flash_attention=FLASH[chosen])
        if engine.has_speculation and settings.batch == 1:
            chosen = choose(f"{name}.speculation", self._speculation(engine, passes))
            settings = settings.replace(speculation=chosen)
        return Candidate(self._limited(settings, choose), passes, model)

    def _limited(self, settings: Settings, choose: Choose) -> Settings:
        """With a power cap or a clock of what it runs on: both lower the clock, so not with both."""
        where = "" if settings.device == "cpu" else "gpu_"
        for offered, chosen in (("power_caps_w", "power_cap_w"), ("clocks_mhz", "clock_mhz")):
            limits = self.limits.get(where + offered, (0,))
            if limits != (0,) and (limit := choose(where + chosen, limits)):
                return settings.replace(**{chosen: limit})
        return settings

    def _speculation(self, engine: type[Backend], passes: Sequence[str]) -> tuple[str, ...]:
        """Ways to speculate, drafts among them: ``draft MODEL``. Passes that change the tokens leave none."""
        names = [each.partition(":")[0] for each in passes]
        cut = any(each.technique.reads_usage for each in self.passes if each.name in names)
        drafts = self.drafts if engine.has_drafts and not cut else ()
        return (*self.speculation, *map(DRAFT.__add__, drafts))

    def _pick_passes(self, engine: str, choose: Choose) -> tuple[tuple[str, ...], bool]:
        """The passes, and whether what they give is packed; only what the engine runs as it is made."""
        picked: list[str] = []
        packed = False
        for each in self.passes:
            kind = each.technique
            unfit = engine not in _able(each) or (kind.packs and packed)
            if unfit or not (each.required or choose(f"pass {each.name}", ("no", "yes")) == "yes"):
                continue
            picked.append(each.pick(choose))
            packed = packed or kind.packs
        return tuple(picked), packed

    def formats(self, engine: str) -> tuple[str, ...]:
        kind = backend(engine)
        usual = tuple(name for name in kind.weight_formats if name not in kind.encoder_formats)
        return self.weight_formats.get(engine, usual)

    def _formats_of_made(self, engine: str) -> tuple[str, ...]:
        """Formats for weights that passes made and did not pack: as they are, they have 32 bits."""
        smaller = tuple(f for f in self.formats(engine) if f != "native")
        return smaller or self.formats(engine)

    def caches(self, engine: str) -> tuple[str, ...]:
        distinct = tuple(name for name in backend(engine).kv_caches if name not in AS_DEFAULT)
        return self.kv_caches.get(engine) or distinct

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """The choices that lead to `candidate`: dimension → value.

        Raises:
            UsageError: it lies outside the space.
        """
        settings = candidate.settings
        flash = {value: name for name, value in FLASH.items()}
        wanted: dict[str, Any] = {
            "engine": settings.engine,
            "model": candidate.model,
            "threads": settings.threads,
            "threads.cores": settings.cores,
            "batch": settings.batch,
            f"{settings.engine}.weight_format": settings.weight_format,
            f"{settings.engine}.kv_cache": settings.kv_cache,
            f"{settings.engine}.speculation": settings.speculation,
            f"{settings.engine}.flash_attention": flash[settings.flash_attention],
            f"{settings.engine}.gpu_layers": settings.gpu_layers or 0,
            **{where + "power_cap_w": settings.power_cap_w or 0 for where in ("", "gpu_")},
            **{where + "clock_mhz": settings.clock_mhz or 0 for where in ("", "gpu_")},
        }
        wanted |= self._wanted_passes(candidate.passes)
        chosen: dict[str, Any] = {}

        def choose(name: str, choices: Sequence[Any]) -> Any:
            if wanted[name] not in choices:
                raise UsageError(f"{name} {wanted[name]!r} is not in the space")
            chosen[name] = wanted[name]
            return wanted[name]

        if self.pick(choose) != candidate:
            raise UsageError(f"{candidate} is not in the space")
        return chosen

    def _wanted_passes(self, passes: Sequence[str]) -> dict[str, Any]:
        """The choices that lead to these passes."""
        from negawatt.compress import parse

        values = {each.name: each.values for each in map(parse, passes)}
        wanted: dict[str, Any] = {}
        for each in self.passes:
            wanted[f"pass {each.name}"] = "yes" if each.name in values else "no"
            wanted |= {f"{each.name}.{key}": v for key, v in values.get(each.name, {}).items()}
        return wanted

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

        In the largest batch, where the weights are read once for the most tokens; without passes that are
        not required.

        Args:
            without: an engine that is known already, because the baseline runs on it.
        """
        batch = max(self.batches)
        rows = []
        for name in self.engines:
            if name == without and len(self.engines) > 1:
                continue
            formats = [f for f in backend(name).starting_formats if f in self.formats(name)]
            formats = formats or [self.formats(name)[0]]
            rows += [[self._start(name, f, batch, model) for f in formats] for model in self.models]
        turns = itertools.zip_longest(*rows)  # every engine once, then every engine again
        found = (candidate for turn in turns for candidate in turn if candidate is not None)
        return list(dict.fromkeys(found))

    def _start(self, engine: str, weight_format: str, batch: int, model: str) -> Candidate:
        return self.nearest(
            {"engine": engine, f"{engine}.weight_format": weight_format, "batch": batch, "model": model}
        )

    def nearest(self, wanted: Mapping[str, Any]) -> Candidate:
        """The point with these choices where they are offered, and the first one of every other dimension."""

        def choose(name: str, choices: Sequence[Any]) -> Any:
            return wanted[name] if name in wanted and wanted[name] in choices else choices[0]

        return self.pick(choose)

    def without(self, names: Collection[str]) -> Space:
        """The same space without some of the passes."""
        return replace(self, passes=tuple(p for p in self.passes if p.name not in names))

    def to_json(self) -> dict[str, Any]:
        return {
            "engines": list(self.engines),
            "batches": list(self.batches),
            "threads": list(self.threads),
            "max_context": self.max_context,
            "weight_formats": {name: list(self.formats(name)) for name in self.engines},
            "models": list(self.models),
            "passes": [each.to_json() for each in self.passes],
            "kv_caches": {name: list(self.caches(name)) for name in self.engines},
            "speculation": list(self.speculation),
            "flash_attention": list(self.flash_attention),
            **({"drafts": list(self.drafts)} if self.drafts else {}),
            **{name: list(found) for name, found in self.limits.items()},
            **({"gpu_layers": {n: list(f) for n, f in self.gpu_layers.items()}} if self.gpu_layers else {}),
            **({"cores": {str(n): list(found) for n, found in self.cores.items()}} if self.cores else {}),
        }


def _able(each: PassRange) -> Sequence[str]:
    """The engines that run what a pass makes as it is made."""
    if each.technique.packs:
        return PACKED_ENGINES
    return FACTORED_ENGINES if each.technique.factors else tuple(BACKENDS)


def core_choices(cores: Cores, threads: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Where threads may be kept on these cores, for numbers of threads with a choice that can matter."""
    found = {n: cores.offered(n) for n in threads}
    return {n: choices for n, choices in found.items() if len(choices) > 1}


def usable(only: Sequence[str] | None = None) -> tuple[str, ...]:
    """Those of the engines named, or of all that are searched unasked, that can run here.

    Raises:
        UsageError: an engine is unknown, or none can run here.
    """
    names = list(only) if only else [name for name in sorted(BACKENDS) if backend(name).searched]
    for name in names:
        backend(name)
    found = tuple(e["name"] for e in engines(names) if e["status"] == "ok")
    if not found:
        raise UsageError(f"none of the engines {', '.join(names)} can run here; see: negawatt doctor")
    return found
