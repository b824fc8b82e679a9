"""OpenVINO IR: the engine's own for decoders, converted from a traced program for encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import PackedTensor
from negawatt.conversion import encoders
from negawatt.conversion.forms import Form, refuse_packed
from negawatt.conversion.runner import CallReader, Reader, Speaker, in_engine, put_weights
from negawatt.conversion.sizes import Widths
from negawatt.engine import openvino_encoder, openvino_ir
from negawatt.engine.openvino import OpenVinoBackend, kernels
from negawatt.errors import require


class OpenVino(Form):
    """A stateful model for OpenVINO GenAI and `openvino.Core`; weights rounded by NNCF."""

    name: ClassVar[str] = "openvino"
    types: ClassVar[tuple[str, ...]] = tuple(
        name for name in OpenVinoBackend.weight_formats if name not in OpenVinoBackend.encoder_formats
    )  # the others are a file's that is run in another way
    aliases: ClassVar[dict[str, str]] = {"fp16": "f16", "int4": "int4-g32-asym"}

    def refuse(self, artifact: Artifact, type: str, kind: str) -> None:
        super().refuse(artifact, type, kind)
        if type == "native":
            fits = _rounds if kind == "classifier" else _read
            refuse_packed(artifact, "OpenVINO's reader", fits, "openvino:f16 writes such matrices in full")

    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        if kind == "encoder":
            openvino_encoder.write(encoders.load(artifact.checkpoint(), kind), type, folder)
            return
        put_weights(artifact, "openvino", type, scratch, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        return [(folder / openvino_ir.MODEL).with_suffix(".bin")]

    def widths(self, artifact: Artifact, type: str, kind: str) -> Widths | int:
        if type == "native" and kind == "decoder" and "gguf" in artifact.formats:
            return artifact.weight_bytes
        if type == "native" and "packed" in artifact.formats:
            return artifact.weight_bytes
        if not type.startswith("int"):
            return Widths(16, 16)
        if type == "int8":
            return Widths(8, 8)  # and two bytes an output channel, which are few
        _, group, grid = type.split("-")
        share = (16 if grid == "sym" else 20) / int(group.removeprefix("g"))
        return Widths(4 + share, 8)

    def speaker(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Speaker]:
        return in_engine(artifact, "openvino", type, prepared=folder)

    @contextmanager
    def reader(self, folder: Path, artifact: Artifact, type: str) -> Iterator[Reader]:
        core = require("openvino", extra="openvino").Core()
        compiled = core.compile_model(folder / openvino_ir.MODEL, "CPU", {"INFERENCE_NUM_THREADS": 1})
        info = {"engine": "openvino", "version": OpenVinoBackend.version(), "kernels": kernels(compiled)}
        yield CallReader(
            lambda tokens, mask: compiled({"input_ids": tokens, "attention_mask": mask})[0], info
        )


def _read(tensor: PackedTensor) -> bool:
    """What becomes a GGUF type that OpenVINO GenAI reads as it is."""
    known = (tensor.bits, tensor.offsets is None) in {(4, True), (4, False), (8, True)}
    return known and tensor.group % 32 == 0 and not tensor.transposed


def _rounds(tensor: PackedTensor) -> bool:
    """What becomes a multiplication of integers in a classifier."""
    return tensor.input_scale is not None
