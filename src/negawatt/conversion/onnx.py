"""ONNX through ``torch.onnx``: a decoder's step with its cache as inputs and outputs, or an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import PackedTensor
from negawatt.conversion import encoders
from negawatt.conversion.forms import Form, packed_matrices, refuse_packed
from negawatt.conversion.runner import CallReader, Reader, Speaker, in_engine, put_weights
from negawatt.conversion.sizes import Widths
from negawatt.engine import onnx_graph, onnx_modules, onnxruntime
from negawatt.errors import installed_version


class Onnx(Form):
    """``fp32`` is plain ONNX; types of fewer bits need ONNX Runtime, whose operators they use."""

    name: ClassVar[str] = "onnx"
    types: ClassVar[tuple[str, ...]] = onnx_graph.FORMATS
    aliases: ClassVar[dict[str, str]] = {"int4": "int4-g32-asym"}

    def refuse(self, artifact: Artifact, type: str, kind: str) -> None:
        super().refuse(artifact, type, kind)
        installed_version("onnxscript", extra="onnx")
        if type == "native":
            refuse_packed(
                artifact, "ONNX Runtime", onnx_modules.holds, "onnx:fp32 writes such matrices in full"
            )

    def write(self, artifact: Artifact, type: str, kind: str, folder: Path, scratch: Path) -> None:
        if kind == "encoder":
            model = encoders.load(artifact.checkpoint(), kind)
            onnx_graph.quantize(model, artifact, type)
            onnx_graph.write_onnx(encoders.function(model, kind), scratch / "encoder")
            for file in (scratch / "encoder").iterdir():
                file.rename(folder / file.name)
        else:
            put_weights(artifact, "onnxruntime", type, scratch, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        return sorted(folder.glob(f"{onnx_graph.MODEL}*"))

    def widths(self, artifact: Artifact, type: str, kind: str) -> Widths | int:
        if type in onnx_graph.GRIDS:
            inner, outer = onnx_graph.GRIDS[type]
            return Widths(inner.width, outer.width)
        stored = packed_matrices(artifact)
        if type != "native" or not any(isinstance(t, PackedTensor) for t in stored.values()):
            return Widths(32, 32)
        n_bytes = 0
        for tensor in stored.values():
            if isinstance(tensor, PackedTensor):
                n_bytes += tensor.codes.n_bytes + 2 * tensor.scales.n_bytes  # scales become fp32
            else:
                n_bytes += sum(
                    4 * _count(part.shape) for part in getattr(tensor, "parts", {"": tensor}).values()
                )
        return n_bytes

    def speaker(self, folder: Path, artifact: Artifact, type: str) -> AbstractContextManager[Speaker]:
        ran = {"kernels": onnxruntime.kernels(folder)}
        return in_engine(artifact, "onnxruntime", type, prepared=folder, also=ran)

    @contextmanager
    def reader(self, folder: Path, artifact: Artifact, type: str) -> Iterator[Reader]:
        session = onnxruntime.session(folder, threads=1)
        info = {"engine": "onnxruntime", **onnxruntime.facts(session), "kernels": onnxruntime.kernels(folder)}
        yield CallReader(
            lambda tokens, mask: session.run(None, {"input_ids": tokens, "attention_mask": mask})[0], info
        )


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
