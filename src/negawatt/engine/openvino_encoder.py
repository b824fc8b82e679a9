"""Text encoders as OpenVINO's IR: the program that torch traces, with weights rounded as asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.packed_file import PackedTensor
from negawatt.engine import openvino_ir, traced
from negawatt.engine.backend import Chunk
from negawatt.engine.openvino_integers import multiply_in_integers
from negawatt.engine.padding import Padded
from negawatt.errors import EngineError, require

FAMILIES = ("bert", "mpnet", "roberta", "xlm-roberta", "electra", "distilbert")
"""Model types that multiply in integers where an artifact rounds inputs, with or without a head."""
LENGTHS = 8
"""Texts are filled up to a multiple of so many tokens: a kernel is made for every length that comes."""


def write(
    model: Any,
    weights: str,
    folder: Path,
    rounding: Mapping[str, PackedTensor] | None = None,
    output: str = traced.HIDDEN,
) -> None:
    """Convert an encoder of transformers into `folder`, which is there.

    Args:
        model: with or without a head.
        weights: a format of the engine; what is rounded already, `rounding` says.
        rounding: matrices by name whose inputs are rounded too, so that integers are multiplied.
        output: of the model what is wanted, as for `negawatt.engine.traced.encoder`.

    Raises:
        EngineError: OpenVINO cannot convert it.
        MissingDependency: OpenVINO, NNCF or torch is not installed.
    """
    made = converted(traced.encoder(model, output))
    if rounding:
        made = multiply_in_integers(made, named(made, rounding))
    elif weights.startswith("int"):
        made = openvino_ir.compress(made, weights)
    save(made, folder)


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


class Texts:
    """A compiled encoder.

    Args:
        compiled: model of OpenVINO that `write` wrote.
        pad: the token that texts are filled up with.
    """

    def __init__(self, compiled: Any, pad: int) -> None:
        self._request, self._pad = compiled.create_infer_request(), pad
        length = compiled.input(0).partial_shape[1]
        self._most = int(length.get_max_length()) if length.get_max_length() > 0 else None

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """What the model gives for each chunk, which is a whole text; valid until the next call."""
        texts = [chunk.tokens for chunk in chunks]
        given = Padded.of(texts, self._pad, multiple=LENGTHS, most=self._most)
        found = self._request.infer([given.tokens, given.mask], share_inputs=True, share_outputs=True)
        return np.asarray(found[0], np.float32)


def named(model: Any, rounding: Mapping[str, PackedTensor]) -> dict[str, PackedTensor]:
    """The matrices under the names of the constants of `model` that hold them.

    The library calls a tensor as torch did, with underscores for dots. A checkpoint may hold an encoder under
    its family's name, which the encoder by itself does not bear.

    Raises:
        EngineError: a matrix is not in the model.
    """
    places: dict[str, str] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            places |= {n.partition(":")[0]: node.get_friendly_name() for n in node.output(0).get_names()}
    found = {}
    for name, tensor in rounding.items():
        ways = [f"model_{way.replace('.', '_')}" for way in (name, name.partition(".")[2])]
        mine = next((way for way in ways if way in places), None)
        if mine is None:
            raise EngineError(f"openvino converted no matrix called {name}")
        found[places[mine]] = tensor
    return found
