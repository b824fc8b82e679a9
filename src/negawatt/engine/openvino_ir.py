"""From a GGUF file to OpenVINO's intermediate representation (IR), with weights as asked for.

OpenVINO GenAI reads GGUF itself, but two things need mending. Its IR keeps one cache for a whole
batch that advances in lockstep, and computes the output head for every position; `page_attention`
gives each sequence pages of a cache of its own, and the model an input that says which rows. And it
rounds the offset of asymmetric 4-bit blocks (Q4_1, Q4_K) to a 4-bit integer, which takes
SmolLM2-135M from perplexity 25.0 to 32.3; `restore_offsets` puts the true offset back.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact.factored_tensor import FactoredTensor
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.packed_file import PackedTensor
from negawatt.engine.openvino_integers import HALF, graph_name, multiply_in_integers
from negawatt.errors import EngineError, require
from negawatt.home import written_beside

MODEL = "openvino_model.xml"
LEAST_GROUP = 32
"""Inputs that the CPU plugin finds a scale for by itself, where weights have 8 bits."""
ROWS = "rows"
"""Name of the input that `page_attention` adds."""

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What OpenVINO GenAI reads from GGUF."""

Values = NDArray[np.float32]

_SOURCE = "model.gguf"  # the reader saves beside its input
_PLAIN_TYPES = ("F32", "F16", "BF16")
_OFFSET_TOLERANCE = 0.05
"""Largest spread, in quantization steps, of an offset within its block: the reader keeps scales in
half precision, so `weight - code * scale` is not quite constant."""


def make_ir(
    gguf: Path,
    weight_format: str,
    target: Path,
    factors: Mapping[str, FactoredTensor] | None = None,
    rounding: Mapping[str, PackedTensor] | None = None,
) -> None:
    """Write the IR of `gguf` into the folder `target`, whole or not at all.

    Matrices that `factors` names, whose product the file holds, become two. Those that `rounding` names
    are multiplied with in integers in the format ``native``, and what else is stored in full gets 8 bits.

    ``native`` keeps quantized weights as they are; every other format starts from the weights in
    half precision, which the reader takes and which every format here is coarser than. That start
    is kept beside `target` under the name that format ``f16`` has.

    Raises:
        EngineError: the reader has no such architecture, or read something else than the file holds.
    """
    header = GgufFile.open(gguf)
    if header.architecture not in ARCHITECTURES:
        raise EngineError(
            f"openvino cannot read {gguf}: its architecture is {header.architecture!r}, and OpenVINO GenAI "
            f"reads {', '.join(ARCHITECTURES)} from GGUF"
        )
    plain = all(tensor.type in _PLAIN_TYPES for tensor in header.tensors.values())
    half = target.with_name(target.name.removesuffix(weight_format) + "f16")
    if weight_format == "f16":
        with written_beside(target) as folder:
            folder.mkdir()
            _write_half(gguf, folder / _SOURCE)
            _read_gguf(folder)
            if factors:
                _rewrite(folder, folder, lambda model: factorise(model, factors))
    elif weight_format == "native" and rounding:
        if not half.exists():
            make_ir(gguf, "f16", half, factors)
        with written_beside(target) as folder:
            folder.mkdir()
            named = {graph_name(name): tensor for name, tensor in rounding.items()}
            _rewrite(half, folder, lambda model: compress(multiply_in_integers(model, named), "int8"))
    elif weight_format == "native" and not plain:
        with written_beside(target) as folder:
            folder.mkdir()
            (folder / _SOURCE).symlink_to(gguf.absolute())
            _read_gguf(folder)
            _rewrite(folder, folder, lambda model: restore_offsets(model, header))
    else:
        if not half.exists():
            make_ir(gguf, "f16", half, factors)
        with written_beside(target) as folder:
            folder.mkdir()
            _rewrite(half, folder, lambda model: compress(model, weight_format))


def _read_gguf(folder: Path) -> None:
    """Let OpenVINO GenAI save the IR of the file in `folder` beside it, and remove the file."""
    genai = require("openvino_genai", extra="openvino")
    genai.LLMPipeline(str(folder / _SOURCE), "CPU", enable_save_ov_model=True)
    if not (folder / MODEL).exists():
        raise EngineError("OpenVINO GenAI read the GGUF file but saved no model; is the disk full?")
    (folder / _SOURCE).unlink()


def _rewrite(source: Path, target: Path, change: Callable[[Any], Any]) -> None:
    """Read the model in the folder `source`, change it, and put it into the folder `target`."""
    openvino = require("openvino", extra="openvino")
    model = change(openvino.Core().read_model(source / MODEL))
    openvino.save_model(model, target / "changed.xml", compress_to_fp16=False)
    del model  # the file it was read from is mapped into memory until here
    for suffix in (".xml", ".bin"):
        (target / f"changed{suffix}").replace((target / MODEL).with_suffix(suffix))


def _write_half(source: Path, target: Path) -> None:
    """Write a GGUF file again with its matrices in half precision."""
    import gguf

    reader, weights = gguf.GGUFReader(source), GgufFile.open(source)
    writer = gguf.GGUFWriter(target, weights.architecture)
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        half = key == "general.file_type"
        writer.add_key_value(
            key, int(gguf.LlamaFileType.MOSTLY_F16) if half else entry.contents(), kind, inner
        )
    for name, info in weights.tensors.items():
        values = weights.dequantized(name)
        writer.add_tensor(name, values.astype(np.float16) if len(info.shape) > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compress(model: Any, weight_format: str) -> Any:
    """Round the weights to nearest with NNCF; in 4-bit formats embedding and head stay in 8 bits."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # NNCF reports home with it
    nncf = require("nncf", extra="openvino")
    nncf.set_log_level("ERROR")
    modes = nncf.CompressWeightsMode
    if weight_format == "int8":
        return nncf.compress_weights(model, mode=modes.INT8_SYM)
    if weight_format == "native":  # of weights that are stored in full: half precision it is
        return model
    bits, group, kind = weight_format.split("-")
    assert bits == "int4"
    mode = modes.INT4_SYM if kind == "sym" else modes.INT4_ASYM
    return nncf.compress_weights(model, mode=mode, group_size=int(group.removeprefix("g")), ratio=1.0)


# -- changes to the graph ------------------------------------------------------------------------


def page_attention(model: Any) -> None:
    """Turn the stateful model into one over tokens of many sequences, whose caches lie in pages.

    It then takes tokens and positions in one row, where each sequence begins in it, how much of each is
    in the cache, and the pages it lies in (W. Kwon et al., PagedAttention, SOSP 2023); and the input
    `ROWS`: logits come for those places only.
    """
    transformations = require("openvino._offline_transformations", extra="openvino")
    opset = require("openvino.opset13", extra="openvino")
    transformations.paged_attention_transformation(model)
    head = model.get_results()[0].input_value(0).get_node()
    rows = opset.parameter([-1], np.int64, name=ROWS)
    rows.output(0).set_names({ROWS})
    wanted = opset.gather(head.input_value(0), rows, opset.constant(0))
    head.input(0).replace_source_output(wanted.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def has_plain_matrices(model: Any) -> bool:
    """Whether a matrix that the model multiplies with is stored in full, half or single precision."""
    for matmul in model.get_ordered_ops():
        if matmul.get_type_name() == "MatMul":
            weight = matmul.input_value(1).get_node()
            if weight.get_type_name() == "Convert":
                weight = weight.input_value(0).get_node()
            if weight.get_type_name() == "Constant" and weight.get_element_type().is_real():
                return True
    return False


def common_width(model: Any) -> int:
    """The largest number of inputs that divides those of every matrix that the model multiplies with.

    Of so many inputs together the CPU plugin finds a scale as it runs (dynamic quantization), if they are a
    multiple of 32; where they do not divide a matrix it rounds none of its inputs. 0 where there are fewer.
    """
    widths = []
    for matmul in model.get_ordered_ops():
        if matmul.get_type_name() != "MatMul":
            continue
        weight = matmul.input_value(1).get_node()
        while weight.get_type_name() in _DECODING and weight.get_input_size():
            weight = weight.input_value(0).get_node()
        shape = matmul.input_value(0).get_partial_shape()
        if weight.get_type_name() == "Constant" and shape[len(shape) - 1].is_static:
            widths.append(int(shape[len(shape) - 1].get_length()))
    found = math.gcd(*widths)
    return found if found >= LEAST_GROUP and found % LEAST_GROUP == 0 else 0


_DECODING = ("Convert", "Multiply", "Subtract", "Reshape")
"""What stands between a rounded matrix and the numbers it stands for."""


def factorise(model: Any, factors: Mapping[str, FactoredTensor]) -> Any:
    """Put two multiplications where the model multiplies with a matrix that is a product of two.

    Raises:
        EngineError: a matrix is not in the model, or holds something else.
    """
    opset = require("openvino.opset13", extra="openvino")
    wanted = {graph_name(name): tensor for name, tensor in factors.items()}
    for constant in model.get_ordered_ops():
        tensor = wanted.pop(constant.get_friendly_name(), None)
        if tensor is None:
            continue
        if not np.allclose(constant.get_data(), tensor.float32(), rtol=HALF, atol=HALF):
            raise EngineError(f"{constant.get_friendly_name()} in OpenVINO is not the product of its factors")
        multiply = constant
        while multiply.get_type_name() in ("Constant", "Convert"):
            multiply = next(iter(multiply.output(0).get_target_inputs())).get_node()
        found = multiply.input_value(0)
        for part in (tensor.right, tensor.left):
            half = opset.constant(part.float32().astype(np.float16))
            found = opset.matmul(found, opset.convert(half, "f32"), False, True).output(0)
        multiply.output(0).replace(found)
    if wanted:
        raise EngineError(f"OpenVINO GenAI read no {next(iter(wanted))} from the GGUF file")
    model.validate_nodes_and_infer_types()
    return model


def restore_offsets(model: Any, gguf: GgufFile) -> Any:
    """Replace integer zero points by the true ones wherever the file's offsets are no integers.

    A 4-bit weight of the IR is ``(code - zero) * scale`` for each block of one row. Codes and scales
    are the file's own, so the zero point that reproduces a block is ``code - weight / scale``, one
    number for the whole block; the file's tensor is known by that.

    Raises:
        EngineError: a weight of the IR is none of the file's.
    """
    opset = require("openvino.opset13", extra="openvino")
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, info in gguf.tensors.items():
        shapes.setdefault(info.shape, []).append(name)
    for subtract, multiply in list(_four_bit_weights(model)):
        codes = _nibbles(subtract.input_value(0).get_node().input_value(0).get_node())
        rounded = _nibbles(subtract.input_value(1).get_node().input_value(0).get_node())
        scale_node = multiply.input_value(1).get_node()
        scale = scale_node.get_data().astype(np.float32)
        zero = _taken_from_file(codes, scale, shapes, gguf)
        if np.abs(zero - rounded).max() > _OFFSET_TOLERANCE:
            subtract.input(1).replace_source_output(opset.constant(zero.astype(np.float16)).output(0))
            if not scale.all():
                scale = np.where(scale == 0, 1, scale).astype(np.float16)
                multiply.input(1).replace_source_output(opset.constant(scale).output(0))
    model.validate_nodes_and_infer_types()
    return model


def _taken_from_file(
    codes: Values, scale: Values, names: dict[tuple[int, ...], list[str]], gguf: GgufFile
) -> Values:
    """True zero points of a weight, whose tensor is taken out of `names` (by shape)."""
    shape = (codes.shape[0], codes.shape[1] * codes.shape[2])
    for name in names.get(shape, []):
        weight = gguf.dequantized(name)
        for ordered in (weight, _halves(weight, _head_size(gguf))):
            zero = _zero_points(ordered.reshape(codes.shape), codes, scale)
            if zero is not None:
                names[shape].remove(name)
                return zero
    raise EngineError(
        f"OpenVINO GenAI read a 4-bit weight of shape {shape} from {gguf.path.name} that is none of the "
        "file's; use another weight format"
    )


def _zero_points(weight: Values, codes: Values, scale: Values) -> Values | None:
    """Zero points of shape ``(rows, blocks, 1)``, or None when these are not the weights of the codes.

    A block whose scale is 0 holds one value; it gets scale 1 (see `restore_offsets`).
    """
    step = np.where(scale == 0, np.float32(1), scale)
    for rows in (slice(0, 1), slice(None)):  # one row tells most strangers apart
        zero = codes[rows] - weight[rows] / step[rows]
        if np.ptp(zero, axis=2).max() > _OFFSET_TOLERANCE:
            return None
    return np.asarray(zero.mean(axis=2, keepdims=True))


def _head_size(gguf: GgufFile) -> int:
    whole = int(gguf.key("embedding_length")) // int(gguf.key("attention.head_count"))
    return int(gguf.key("rope.dimension_count", whole))


def _halves(weight: Values, head_size: int) -> Values:
    """Rows of queries and keys as the reader orders them: GGUF's Llama files interleave the halves of
    each head for their form of rotary embedding."""
    if weight.shape[0] % head_size:
        return weight
    pairs = weight.reshape(-1, head_size // 2, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _four_bit_weights(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the Subtract and Multiply nodes that decode each 4-bit weight."""
    for subtract in model.get_ordered_ops():
        if subtract.get_type_name() != "Subtract":
            continue
        codes = subtract.input_value(0).get_node()
        if (
            codes.get_type_name() == "Convert"
            and codes.input_value(0).get_element_type().get_type_name() == "u4"
        ):
            yield subtract, next(iter(subtract.output(0).get_target_inputs())).get_node()


def _nibbles(constant: Any) -> Values:
    """A u4 constant's values; the first of two lies in the low half of their byte."""
    packed = constant.get_data()
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(list(constant.shape)).astype(np.float32)
