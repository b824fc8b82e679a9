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
    openvino, torch = require("openvino", extra="openvino"), require("torch", extra="transformers")
    function = traced.encoder(model)
    try:
        with traced.quietly(), torch.inference_mode():
            program = torch.export.export(function.module, function.example, dynamic_shapes=function.shapes)
            converted = openvino.convert_model(program)
    except (RuntimeError, ValueError, TypeError) as exc:
        raise EngineError(f"openvino cannot convert {type(model).__name__}: {exc}") from exc
    for port, name in zip(converted.inputs, function.inputs, strict=True):
        port.get_tensor().set_names({name})
    converted = openvino_ir.compress(converted, weights) if weights.startswith("int") else converted
    openvino.save_model(converted, folder / openvino_ir.MODEL, compress_to_fp16=True)
