"""From an artifact to an ONNX model, through ``torch.onnx`` and the model's own code in transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import read_packed
from negawatt.engine import embedder, factored, onnx_attention, onnx_modules, traced
from negawatt.engine.classifier import labels_of
from negawatt.engine.onnx_modules import Grid
from negawatt.engine.transformers import causal_lm, classifier_of, encoder_of
from negawatt.errors import EngineError, require
from negawatt.home import written_beside

MODEL = "model.onnx"
CACHE, IN_PLACE = "negawatt.cache", "in place"
"""A model's own note that its cache may be one buffer for past and present, longer than what it holds."""
REVISION = 2
"""Of the graphs below; what an earlier one left in a cache is made again."""
OPSET = 23
"""The first with operators of its own for attention, rotary positions and RMS norms."""

GRIDS = {
    "int8": (Grid(8, 32), Grid(8, 32)),
    "int4-g32-sym": (Grid(4, 32), Grid(8, 32)),
    "int4-g32-asym": (Grid(4, 32, symmetric=False), Grid(8, 32)),
    "int4-g64-sym": (Grid(4, 64), Grid(8, 64)),
}
"""Formats that round: how layers are rounded, and how the embedding and the head."""

FORMATS = ("native", "fp32", *GRIDS)


def make_onnx(artifact: Artifact, weight_format: str, target: Path) -> None:
    """Write the folder `target` with `MODEL` and its weights beside it, whole or not at all.

    ``fp32`` is plain ONNX; the others use ONNX Runtime's own operators, for attention where the model's
    can be had by it, and for weights of few bits. ``native`` keeps the grid of a packed artifact where
    those operators have it, and has weights in fp32 for everything else.

    Of a classifier its ``config.json`` lies there too, which says what its outputs stand for.

    Raises:
        EngineError: transformers has no such decoder, or it cannot be traced, or a grid does not fit.
        MissingDependency: onnx, onnxscript or torch is missing.
    """
    checkpoint, pooling = artifact.checkpoint(), artifact.pooling()
    if pooling is not None:
        encoder = encoder_of(checkpoint, "fp32")
        quantize(encoder, artifact, weight_format)
        write_onnx(traced.encoder(encoder), target, {embedder.POOLING: embedder.kept(artifact, pooling)})
        return
    classifies = bool(labels_of(checkpoint))
    model = (classifier_of if classifies else causal_lm)(checkpoint, "fp32")
    quantize(model, artifact, weight_format)
    if classifies:
        function = traced.encoder(model, traced.LOGITS)
    else:
        function = (traced if weight_format == "fp32" else onnx_attention).decoder(model)
    config = (checkpoint / "config.json").read_text("utf-8")
    write_onnx(function, target, {"config.json": config} if classifies else {})


def quantize(model: Any, artifact: Artifact, weight_format: str) -> None:
    """Change the layers of an artifact's model to what `weight_format` says.

    Raises:
        EngineError: a grid does not fit.
    """
    factored.install(model, factored.factors(artifact.path))
    if weight_format in GRIDS:
        onnx_modules.install(model, *GRIDS[weight_format], {})
    elif weight_format == "native" and "packed" in artifact.formats:
        onnx_modules.install(model, None, None, read_packed(artifact.path))


def write_onnx(function: traced.Traced, target: Path, beside: Mapping[str, str] = {}) -> None:
    """Trace a function of tensors and write it into the folder `target`, whole or not at all.

    Args:
        beside: texts of further files, by name.

    Raises:
        EngineError: torch cannot trace it.
    """
    require("onnx", extra="onnx")
    require("onnxscript", extra="onnx")
    torch = require("torch", extra="onnx")
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with traced.quietly(), torch.inference_mode():
            program = torch.onnx.export(
                function.module,
                function.example,
                dynamic_shapes=function.shapes,
                input_names=function.inputs,
                output_names=function.outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise EngineError(
            f"torch.onnx cannot trace a {type(function.module.model).__name__}: {reason}"
        ) from exc
    finally:
        log.setLevel(level)
    if onnx_attention.straighten(program.model):
        program.model.metadata_props[CACHE] = IN_PLACE
    with written_beside(target) as folder:
        folder.mkdir()
        program.save(folder / MODEL, external_data=True)
        for name, text in beside.items():
            (folder / name).write_text(text, "utf-8")
