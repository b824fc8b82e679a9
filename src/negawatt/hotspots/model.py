"""Hot-spots of a language model: prefill and decode of one prompt, by layer and operator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine.transformers import causal_lm
from negawatt.errors import UsageError, require
from negawatt.hotspots.hotspots import Hotspots
from negawatt.hotspots.layers import HOOKS, Watch
from negawatt.meter import Measurement, Meter, Station

PROMPT = "A negawatt is a watt that nobody has to make, because somebody found a way to do without it. Why"
Progress = Callable[[float, float | None, str], None]


@dataclass(frozen=True)
class _Asked:
    """What one pass does: tokens of the prompt, shape `(1, n_prompt)`, and how many to generate."""

    ids: Any
    n_new: int


def of_model(
    artifact: Artifact,
    *,
    prompt: str = PROMPT,
    n_new: int = 16,
    passes: int = 4,
    weight_format: str = "fp32",
    threads: int | None = None,
    station: Station | None = None,
    progress: Progress | None = None,
) -> Hotspots:
    """What prefill and greedy decode of one prompt spend, by stage, module and operator.

    Passes with and without hooks take turns, after one of each to warm up. The joules are those of
    the passes without; the others tell only how to share them, without what the hooks cost.

    Args:
        artifact: a model that transformers has code for; it runs eagerly, as `model.generate` would.
        prompt: what it continues, taken as it is.
        n_new: tokens to generate; the first comes out of prefill, so decode runs `n_new - 1` times.
        passes: measured passes of each sort.
        weight_format: ``native``, ``fp32`` or ``bf16``.
        threads: of torch; by default its own choice.
        station: the sensors to use; by default all that can be trusted here.
        progress: called with passes done, passes in all, and what is being done.

    Raises:
        MissingDependency: torch or transformers is not installed.
        EngineError: transformers cannot run the model.
        UsageError: the prompt is empty, or a number is below 1.
    """
    torch = require("torch", extra="transformers")
    ids = artifact.tokenizer.encode(prompt, add_special=True)
    if not ids or n_new < 1 or passes < 1:
        raise UsageError("expected a prompt of at least one token, one new token and one pass or more")
    if threads is not None:
        torch.set_num_threads(threads)
    model = causal_lm(artifact.checkpoint(), weight_format)
    asked = _Asked(torch.tensor([ids]), n_new)
    _generate(model, asked, None)
    with Watch().on(model):
        _generate(model, asked, None)
    watch, plain = Watch(), []
    for done in range(passes):
        if progress:
            progress(done, passes, "passes")
        with Meter(station) as meter:
            _generate(model, asked, None)
        plain.append(meter.measurement)
        with watch.on(model):
            _generate(model, asked, watch)
    return _shared(artifact.name, asked, passes, watch, together(plain))


def _generate(model: Any, asked: _Asked, watch: Watch | None) -> None:
    """One prompt, greedily; nothing is sampled and nothing stops early, so every pass is the same work."""
    import torch

    def stage(name: str) -> Any:
        return watch.stage(name) if watch else nullcontext()

    # transformers 5.24 renamed the argument, and will drop the old name.
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.no_grad():
        with stage("prefill"):
            out = model(input_ids=asked.ids, use_cache=True, logits_to_keep=1)
        with stage("decode"):
            for _ in range(asked.n_new - 1):
                token = out.logits[:, -1:].argmax(-1)
                out = model(input_ids=token, **{cache: out.past_key_values}, use_cache=True)


def _shared(name: str, asked: _Asked, passes: int, watch: Watch, plain: Measurement) -> Hotspots:
    tally = watch.tally()
    more = tally.total_cpu_s() / plain.cpu_s - 1 if plain.cpu_s > 0 else 0.0
    seen = watch.looking_cpu_s / plain.cpu_s if plain.cpu_s > 0 else 0.0
    del tally.inside[HOOKS]  # the passes that the joules come from had none
    n_prompt, n_new = asked.ids.shape[1], asked.n_new
    found = Hotspots.share(
        f"{name}: {n_prompt} tokens of prompt, {n_new} new",
        tally,
        plain,
        looking_cpu_s=watch.looking_cpu_s,
    )
    notes = [
        f"{passes} passes measured without hooks, shared as {passes} passes with them show; those took "
        f"{more:+.0%} CPU time, and {seen:.0%} was found to be the hooks' and is left out"
    ]
    for stage in found.whole.inside:
        tokens = passes * {"prefill": n_prompt, "decode": n_new - 1}.get(stage.name, 0)
        if stage.kind == "stage" and tokens:
            notes.append(f"{stage.name}: {stage.energy.scaled(1 / tokens)} a token, {tokens} tokens")
    return replace(found, notes=tuple(notes))


def together(measurements: list[Measurement]) -> Measurement:
    """Several windows on the same machine as one: everything added up, warnings told once."""
    first = measurements[0]

    def total(of: Callable[[Measurement], Energy]) -> Energy:
        return Energy.total(map(of, measurements))

    def by_name(of: Callable[[Measurement], Mapping[str, Energy]]) -> dict[str, Energy]:
        return {name: Energy.total(of(m)[name] for m in measurements) for name in of(first)}

    return replace(
        first,
        duration_s=sum(m.duration_s for m in measurements),
        energy=total(lambda m: m.energy),
        components=by_name(lambda m: m.components),
        machine=by_name(lambda m: m.machine),
        idle=total(lambda m: m.idle),
        dynamic=total(lambda m: m.dynamic),
        cpu_s=sum(m.cpu_s for m in measurements),
        other_cpu_s=sum(m.other_cpu_s for m in measurements),
        steal_s=sum(m.steal_s for m in measurements),
        warnings=tuple(dict.fromkeys(w for m in measurements for w in m.warnings)),
    )
