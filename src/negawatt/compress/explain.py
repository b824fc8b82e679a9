"""`explain`: which passes can lower what a token costs on this machine, engine and batch, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from negawatt.artifact import Artifact
from negawatt.compress.dissection import Dissection, dissect
from negawatt.compress.effect import PACKED_ENGINES, Effect, Situation, unpacked
from negawatt.compress.registry import PASSES, technique
from negawatt.compress.technique import Pass
from negawatt.engine import Settings
from negawatt.errors import UsageError

NOTHING = 0.99
"""A pass that is foretold to leave more than this of the cost is said to save nothing."""
BOUND = {
    "weights": "weight-bound: fewer bytes of weights a step, or more sequences to share them, save most",
    "arithmetic": "compute-bound: less arithmetic saves; fewer bits only where the engine multiplies them",
    "overhead": "overhead-bound: starting operations costs most; fewer layers or a larger batch save",
    "context": "context-bound: the key-value cache costs most; fewer key-value heads help",
}


def explain(
    artifact: Artifact | str,
    settings: Settings,
    passes: Sequence[Pass] = (),
    tick: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Take a decoding step apart by measurement, and foretell what each pass leaves of it.

    Args:
        artifact: a decoder, or what `Artifact.open` takes.
        settings: the engine, its threads and batch.
        passes: those to look at, with their parameters; by default every pass with its defaults.
        tick: told what is being done.

    Returns:
        the document of ``negawatt compress --explain --json``: the parts of a token's cost, and for
        each pass the ``ratio`` that is foretold and ``why``; ``ratio`` is None where a pass does not fit.

    Raises:
        UsageError: the model is no decoder.
        EngineError: the engine cannot run it.
    """
    artifact = Artifact.open(artifact) if isinstance(artifact, str) else artifact
    found = dissect(artifact, settings, tick)
    at = Situation(
        found.shape,
        settings.engine,
        found.layer_bits,
        found.layer_bytes,
        found.head_bytes,
        settings.weight_format,
    )
    # An engine's own weight formats are made anew from whatever comes; what runs as it is stays as it is.
    packed = (
        settings.weight_format == "native"
        and settings.engine in PACKED_ENGINES
        and "checkpoint" not in artifact.formats
    )
    rows: list[dict[str, Any]] = []
    for each in passes or [technique(name)() for name in sorted(PASSES)]:
        try:
            effect = each.effect(at)
        except UsageError as exc:
            rows.append({"pass": str(each), "ratio": None, "saves": False, "why": str(exc)})
            continue
        ratio = foretold(found, effect)
        why = _why(found, effect, ratio)
        if packed and not effect.packs:
            why += f"; its result is stored in 32 bits: let a quantizer follow, and it is {ratio:.2f}x"
            ratio = foretold(found, unpacked(at, effect))
        rows.append({"pass": str(each), "ratio": ratio, "saves": ratio < NOTHING, "why": why})
    rows.sort(key=lambda row: (row["ratio"] is None, row["ratio"] or 0.0))
    return {"artifact": artifact.name, **found.to_json(), "verdict": BOUND[found.bound], "passes": rows}


def foretold(step: Dissection, effect: Effect) -> float:
    """The cost of a token after a pass, as a share of what it is."""
    after = Dissection(
        settings=step.settings,
        shape=step.shape,
        read_s=step.read_s * effect.read,
        unpack_s=step.unpack_s * effect.unpack,
        start_s=step.start_s * effect.start,
        arithmetic_s=step.arithmetic_s * effect.arithmetic,
        context_s=step.context_s * effect.context,
        prefill_s=step.prefill_s * effect.arithmetic,
        layer_bits=step.layer_bits,
        layer_bytes=step.layer_bytes,
        head_bytes=step.head_bytes,
        bytes_per_s=step.bytes_per_s,
        errors=step.errors,
    )
    return after.token_s / step.token_s


def _why(step: Dissection, effect: Effect, ratio: float) -> str:
    """The pass's own sentence, and why little follows from it where little does."""
    if not effect.saves or ratio < NOTHING:
        return effect.why
    share = step.parts[step.bound] / step.token_s
    return f"{effect.why}; but {share:.0%} of a token's cost here is {step.bound}"
