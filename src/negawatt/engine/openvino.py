"""`OpenVinoBackend`: OpenVINO's CPU plugin with a paged cache, ragged batches and raw logits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.engine import (
    classifier,
    embedder,
    factored,
    openvino_classifier,
    openvino_encoder,
    openvino_integers,
    openvino_ir,
    rounded_inputs,
)
from negawatt.engine.backend import Backend, Chunk, Logits, in_parts
from negawatt.engine.padding import pad_of
from negawatt.engine.transformers import encoder_of
from negawatt.errors import EngineError, installed_version, require
from negawatt.home import written_beside
from negawatt.meter.machine import cpu_identity

TOKENS_PER_STEP = 2048
"""Most tokens handed to one inference."""
PAGE_TOKENS = 32
"""Tokens of a page of the cache, a constant of OpenVINO's CPU plugin."""


class OpenVinoBackend(Backend):
    """Architectures that OpenVINO GenAI reads from GGUF: Llama, Qwen2 and Qwen3; and encoders, as traced,
    also those with a head that labels texts.

    Matrices that an artifact holds as two factors are multiplied with one after the other.

    Weight formats: ``native`` is the GGUF file's own quantization (a checkpoint's: half precision; where an
    artifact rounds inputs too, integers are multiplied),
    ``f16`` half precision, ``int8`` one symmetric scale an output channel, ``int4-gN-sym|asym`` one
    scale for N weights, rounded to nearest with the embedding and head in 8 bits. ``w8a8`` has the weights
    of ``int8``, and each token's inputs of a matrix are rounded to 8 bits on few scales found as it runs, in
    place of one for 32 inputs: it pays where many tokens run together. Arithmetic and the cache's
    ``default`` precision are the library's choice for the processor; `info` names them. A cache in ``bf16``
    is there only where the processor computes in it.
    """

    name: ClassVar[str] = "openvino"
    weight_formats: ClassVar[tuple[str, ...]] = (
        "native", "f16", "int8", "w8a8", "int4-g64-sym", "int4-g64-asym", "int4-g32-sym", "int4-g32-asym",
    )  # fmt: skip
    starting_formats: ClassVar[tuple[str, ...]] = ("native", "int8", "w8a8")
    encoder_formats: ClassVar[tuple[str, ...]] = ("w8a8",)
    kv_caches: ClassVar[tuple[str, ...]] = (
        "default", "u8", "f16", *(("bf16",) if "avx512_bf16" in cpu_identity().flags else ()),
    )  # fmt: skip
    has_speculation: ClassVar[bool] = True
    classifies: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    @classmethod
    def version(cls) -> str:
        """Version of OpenVINO, for example ``2026.4.1``."""
        return installed_version("openvino", extra="openvino")

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        weight_format = "int8" if weight_format == "w8a8" else weight_format  # the rest is done on loading
        target = cache / f"{cls.version()}-{weight_format}"
        if not target.exists():
            artifact = Artifact.open(artifact_path)
            if classifier.labels_in(artifact):
                with _translated(f"convert {artifact.name}"):
                    openvino_classifier.make(artifact, weight_format, target)
                return target
            if (pooling := artifact.pooling()) is not None:
                _prepare_encoder(artifact, weight_format, target, embedder.kept(artifact, pooling))
                return target
            gguf = artifact.gguf()
            with _translated(f"read {gguf}"):
                openvino_ir.make_ir(
                    gguf, weight_format, target, factored.factors(artifact.path),
                    rounded_inputs.rounding_of(artifact.path),
                )  # fmt: skip
        return target

    def load(self, path: Path) -> None:
        openvino = self._openvino = require("openvino", extra="openvino")
        properties: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.settings.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self.settings.threads
        if self.settings.kv_cache != "default":
            properties["KV_CACHE_PRECISION"] = self.settings.kv_cache
        properties |= openvino_integers.properties()
        with _translated(f"load {path}"):
            core = openvino.Core()
            model = core.read_model(path / openvino_ir.MODEL)
            if self.settings.weight_format == "w8a8" and (width := openvino_ir.common_width(model)):
                properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = width
            self.labels = classifier.labels_of(path) if (path / "config.json").exists() else ()
            if self.labels:
                self._compiled = core.compile_model(model, "CPU", properties)
                self._texts = openvino_encoder.Texts(self._compiled, pad_of(path))
                self.vocab_size = len(self.labels)
                return
            if self.settings.threads == 1 and openvino_ir.has_plain_matrices(model):
                # On one thread the kernels for AMX divide by zero over such matrices (2026.4.1).
                os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
            known = embedder.found(path, self.settings.pooling)
            if known is None:
                openvino_ir.page_attention(model)
            self._compiled = core.compile_model(model, "CPU", properties)
            if known is not None:
                self.pooling, pad = known
                self._texts = openvino_encoder.Texts(self._compiled, pad)
                self.vocab_size = int(self.pooling.width or 0)
                return
            self._request = self._compiled.create_infer_request()
            self._make_pages()
        self.vocab_size = int(self._compiled.output("logits").partial_shape[2].get_length())

    def _make_pages(self) -> None:
        """Give every slot the pages of its longest sequence; what is never written takes no memory."""
        self._lengths = [0] * self.settings.batch
        self._slot_pages = -(-self.settings.max_context // PAGE_TOKENS)
        for entry in self._compiled.inputs:
            name = entry.get_any_name()
            if "cache" in name:  # pages, heads, and the numbers of a page, scales of an 8-bit cache included
                sides = [side.get_length() for side in list(entry.get_partial_shape())[1:]]
                shape = [self._slot_pages * self.settings.batch, *sides]
                self._request.set_tensor(name, self._openvino.Tensor(entry.get_element_type(), shape))

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        if self.labels:
            with _translated("run the model"):
                return classifier.rows_of(self._texts.run(chunks))
        if self.pooling is not None:
            with _translated("run the model"):
                return embedder.rows_of(self._texts.run(chunks), chunks, self.pooling)
        return in_parts(chunks, TOKENS_PER_STEP, self._step)

    def _step(self, chunks: Sequence[Chunk]) -> list[Logits]:
        past = [self._lengths[chunk.slot] for chunk in chunks]
        begins = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])
        longest = max(have + len(chunk.tokens) for have, chunk in zip(past, chunks, strict=True))
        if longest > self.settings.max_context:
            raise EngineError(
                f"a sequence of {longest} tokens does not fit max_context {self.settings.max_context}"
            )
        pages = [
            np.arange(-(-(have + len(chunk.tokens)) // PAGE_TOKENS)) + chunk.slot * self._slot_pages
            for have, chunk in zip(past, chunks, strict=True)
        ]
        rows = [np.arange(end - chunk.rows, end) for end, chunk in zip(begins[1:], chunks, strict=True)]
        positions = [
            np.arange(have, have + len(chunk.tokens)) for have, chunk in zip(past, chunks, strict=True)
        ]
        with _translated("run the model"):
            self._set("input_ids", np.concatenate([np.asarray(c.tokens) for c in chunks]), np.int64)
            self._set("position_ids", np.concatenate(positions), np.int64)
            self._set("past_lens", np.array(past), np.int32)
            self._set("subsequence_begins", begins, np.int32)
            self._set("block_indices", np.concatenate(pages), np.int32)
            self._set("block_indices_begins", np.cumsum([0, *map(len, pages)]), np.int32)
            self._set("max_context_len", np.array(longest), np.int32)
            self._set(openvino_ir.ROWS, np.concatenate(rows), np.int64)
            self._request.infer()
        for have, chunk in zip(past, chunks, strict=True):
            self._lengths[chunk.slot] = have + len(chunk.tokens)
        logits = self._request.get_tensor("logits").data.reshape(-1, self.vocab_size)
        return np.split(logits, np.cumsum([chunk.rows for chunk in chunks])[:-1])

    def _set(self, name: str, values: NDArray[np.integer], kind: type[np.integer]) -> None:
        tensor = self._openvino.Tensor(self._openvino.Type(np.dtype(kind)), values.shape)
        tensor.data[...] = values
        self._request.set_tensor(name, tensor)

    def release(self, slot: int) -> None:
        if self.pooling is None:
            self._lengths[slot] = 0

    def truncate(self, slot: int, length: int) -> None:
        self._lengths[slot] = length

    def info(self) -> dict[str, object]:
        """Keys: ``version``, ``processor``, ``isa``, ``threads``, ``inference_precision``, ``kv_cache``
        (what the pages hold, which may be another precision than was asked for),
        ``dynamic_quantization_group``, and ``kernels``, how many matrices each multiplies."""
        get = self._compiled.get_property
        capabilities = (
            require("openvino", extra="openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        )
        return {
            "version": self.version(),
            "processor": self._compiled_name(),
            "isa": " ".join(capabilities),
            "threads": int(get("INFERENCE_NUM_THREADS")),
            "inference_precision": get("INFERENCE_PRECISION_HINT").get_type_name(),
            "kv_cache": self._cache_precision(),
            "dynamic_quantization_group": int(get("DYNAMIC_QUANTIZATION_GROUP_SIZE")),
            "kernels": kernels(self._compiled),
        }

    def _cache_precision(self) -> str:
        """What the pages hold: the plugin answers with what it was asked for, and may take another."""
        kinds = {e.get_element_type().get_type_name() for e in self._compiled.inputs
                 if "cache" in e.get_any_name()}  # fmt: skip
        return "+".join(sorted(kinds))

    def _compiled_name(self) -> str:
        core = require("openvino", extra="openvino").Core()
        return str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()


def _prepare_encoder(artifact: Artifact, weight_format: str, target: Path, pooling: str) -> None:
    model = encoder_of(artifact.checkpoint(), "fp32")
    rounding = rounded_inputs.rounding_of(artifact.path) if weight_format == "native" else {}
    with written_beside(target) as folder:
        folder.mkdir()
        openvino_encoder.write(model, weight_format, folder, rounding)
        (folder / embedder.POOLING).write_text(pooling, "utf-8")


def kernels(compiled: Any) -> dict[str, int]:
    """The kernels that multiply with weights in a compiled model, and how many layers each runs.

    A kernel's name ends in the precision it multiplies in: ``i8`` are integers; weights that are only
    stored in 8 bits are multiplied in ``bf16`` or ``f32``.
    """
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        told = node.get_rt_info()
        if "layerType" in told and str(told["layerType"].value) in ("FullyConnected", "MatMul"):
            found[str(told["primitiveType"].value)] += 1
    return dict(sorted(found.items()))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the library raises into an `EngineError` that says what could not be done."""
    try:
        yield
    except MemoryError as exc:
        raise EngineError(f"openvino cannot {what}: out of memory") from exc
    except (RuntimeError, ValueError) as exc:
        # Its messages name source lines first and the reason last.
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(exc).__name__
        if "bad_alloc" in reason or "allocate" in reason:
            reason = "out of memory"
        raise EngineError(f"openvino cannot {what}: {reason}") from exc
