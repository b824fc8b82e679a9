"""Text encoders as OpenVINO's IR: the program that torch traces, with weights rounded as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from negawatt.engine import openvino_ir, traced
from negawatt.errors import EngineError, require


def write(model: Any, weights: str, folder: Path) -> None:
    """Convert an encoder of transformers into `folder`, which is there.

    Raises:
        EngineError: OpenVINO cannot convert it.
        MissingDependency: OpenVINO or torch is not installed.
    """
    made = converted(traced.encoder(model))
    save(openvino_ir.compress(made, weights) if weights.startswith("int") else made, folder)


def converted(function: traced.Traced) -> Any:
    """A traced function of token ids and mask as a model of OpenVINO.

    Raises:
        EngineError: OpenVINO cannot convert it.
    """
    openvino, torch = require("openvino", extra="openvino"), require("torch", extra="transformers")
    try:
        with traced.quietly(), torch.inference_mode():
            program = torch.export.export(function.module, function.example, dynamic_shapes=function.shapes)
            model = openvino.convert_model(program)
    except (RuntimeError, ValueError, TypeError) as exc:
        kind = type(function.module.model).__name__
        raise EngineError(f"openvino cannot convert {kind}: {exc}") from exc
    for port, name in zip(model.inputs, function.inputs, strict=True):
        port.get_tensor().set_names({name})
    return model


def save(model: Any, folder: Path) -> None:
    """Write a model of OpenVINO into `folder`, what is not rounded in half precision."""
    openvino = require("openvino", extra="openvino")
    openvino.save_model(model, folder / openvino_ir.MODEL, compress_to_fp16=True)
