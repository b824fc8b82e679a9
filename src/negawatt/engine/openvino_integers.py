"""Layers of the IR that multiply integers: 8-bit codes as weights, and inputs rounded before them.

The CPU plugin recognises ``FakeQuantize`` before a multiplication with an 8-bit constant, and runs both in
8-bit integers, compiled with `properties` where the processor can. `negawatt.engine.openvino.kernels` tells
what it did.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from negawatt.artifact.packed_file import PackedTensor
from negawatt.engine.rounded_inputs import LEAST, MOST
from negawatt.errors import EngineError, require
from negawatt.meter.machine import cpu_identity

HALF = 2e-3
"""Two values that agree in half precision differ by no more, absolutely and relatively."""


def sums_are_exact() -> bool:
    """Whether this processor adds products of 8-bit integers without loss.

    x86 without VNNI adds two of them in 16 bits and cuts what does not fit: of signed inputs, which get an
    offset of 128, most sums of large weights.
    """
    known = {"avx512_vnni", "avx_vnni"}.intersection(cpu_identity().flags)
    return bool(known) or platform.machine() not in ("x86_64", "AMD64")


def properties() -> dict[str, object]:
    """What to compile a model with: where sums would not be exact, rounded values stay floats."""
    return {} if sums_are_exact() else {"LP_TRANSFORMS_MODE": False}


def graph_name(name: str) -> str:
    """A tensor's name in the IR that OpenVINO GenAI makes: layers have their number in brackets."""
    return re.sub(r"\.(\d+)\.", r"[\1].", name)


def multiply_in_integers(model: Any, found: Mapping[str, PackedTensor]) -> Any:
    """Give the model's multiplications the codes and the input rounding of an artifact's matrices.

    Args:
        model: with those matrices as constants in full or half precision.
        found: by their names in the model; symmetric 8 bits, one scale an output.

    Raises:
        EngineError: a matrix is not in the model, or holds something else.
    """
    opset = require("openvino.opset13", extra="openvino")
    wanted = dict(found)
    before: dict[tuple[str, int, float], Any] = {}  # layers with common inputs share their rounding
    for constant in model.get_ordered_ops():
        tensor = wanted.pop(constant.get_friendly_name(), None)
        if tensor is None or tensor.input_scale is None:
            continue
        if not np.allclose(constant.get_data(), tensor.float32(), rtol=HALF, atol=HALF):
            raise EngineError(f"{constant.get_friendly_name()} in OpenVINO is not the artifact's")
        multiply = constant
        while multiply.get_type_name() in ("Constant", "Convert"):
            multiply = next(iter(multiply.output(0).get_target_inputs())).get_node()
        source = multiply.input_value(0)
        key = (source.get_node().get_friendly_name(), source.get_index(), tensor.input_scale)
        if key not in before:
            ends = [opset.constant(np.float32(end * tensor.input_scale)) for end in (LEAST, MOST)]
            before[key] = opset.fake_quantize(source, *ends, *ends, MOST - LEAST + 1).output(0)
        codes = (tensor.unpacked().astype(np.int16) - 128).astype(np.int8)
        weight = opset.multiply(
            opset.convert(opset.constant(codes), "f32"), opset.constant(tensor.scales.float32())
        )
        multiply.input(0).replace_source_output(before[key])
        multiply.input(1).replace_source_output(weight.output(0))
    if wanted:
        raise EngineError(f"OpenVINO's model has no {next(iter(wanted))}")
    model.validate_nodes_and_infer_types()
    return model
