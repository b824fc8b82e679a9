"""`OpenVinoBackend`: OpenVINO's CPU plugin on a stateful model, with raw logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np

from negawatt.artifact import Artifact
from negawatt.engine import factored, openvino_ir
from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.lockstep import Lockstep, rows_of
from negawatt.engine.settings import Settings
from negawatt.errors import EngineError, UnsupportedSetting, installed_version, require


class OpenVinoBackend(Backend):
    """Architectures that OpenVINO GenAI reads from GGUF: Llama, Qwen2 and Qwen3.

    Matrices that an artifact holds as two factors are multiplied with one after the other.

    Weight formats: ``native`` is the GGUF file's own quantization (a checkpoint's: half precision),
    ``f16`` half precision, ``int8`` one symmetric scale an output channel, ``int4-gN-sym|asym`` one
    scale for N weights, rounded to nearest with the embedding and head in 8 bits. Arithmetic and
    the cache's ``default`` precision are the library's choice for the processor; `info` names them.
    """

    name: ClassVar[str] = "openvino"
    weight_formats: ClassVar[tuple[str, ...]] = (
        "native", "f16", "int8", "int4-g64-sym", "int4-g64-asym", "int4-g32-sym", "int4-g32-asym",
    )  # fmt: skip
    starting_formats: ClassVar[tuple[str, ...]] = ("native", "int8")
    kv_caches: ClassVar[tuple[str, ...]] = ("default", "u8", "f16", "bf16")
    has_speculation: ClassVar[bool] = True

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.speculation != "none" and settings.batch > 1:
            raise UnsupportedSetting(f"{cls.name} speculates at batch 1 only, not at batch {settings.batch}")

    @classmethod
    def version(cls) -> str:
        """Version of OpenVINO, for example ``2026.4.1``."""
        return installed_version("openvino", extra="openvino")

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        target = cache / f"{cls.version()}-{weight_format}"
        if not target.exists():
            artifact = Artifact.open(artifact_path)
            gguf = artifact.gguf()
            with _translated(f"read {gguf}"):
                openvino_ir.make_ir(gguf, weight_format, target, factored.factors(artifact.path))
        return target

    def load(self, path: Path) -> None:
        openvino = require("openvino", extra="openvino")
        properties: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.settings.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self.settings.threads
        if self.settings.kv_cache != "default":
            properties["KV_CACHE_PRECISION"] = self.settings.kv_cache
        with _translated(f"load {path}"):
            core = openvino.Core()
            model = core.read_model(path / openvino_ir.MODEL)
            openvino_ir.cut_head(model)
            self._compiled = core.compile_model(model, "CPU", properties)
            self._request = self._compiled.create_infer_request()
        self.vocab_size = int(self._compiled.output("logits").partial_shape[2].get_length())
        self._batch = Lockstep()

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        step = self._batch.step(chunks)
        with _translated("run the model"):
            if step.fresh:
                self._request.reset_state()
            inputs = {
                "input_ids": step.tokens,
                "attention_mask": step.mask,
                "position_ids": step.positions,
                "beam_idx": step.kept,
                openvino_ir.KEEP: np.array(step.wanted),
            }
            self._request.infer(inputs, share_inputs=True)
            return rows_of(self._request.get_tensor("logits").data, chunks)

    def release(self, slot: int) -> None:
        self._batch.release(slot)

    def truncate(self, slot: int, length: int) -> None:
        self._batch.mask_out(slot, length)

    def info(self) -> dict[str, object]:
        """Keys: ``version``, ``processor``, ``isa``, ``threads``, ``inference_precision``, ``kv_cache``,
        ``dynamic_quantization_group``."""
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
            "kv_cache": get("KV_CACHE_PRECISION").get_type_name(),
            "dynamic_quantization_group": int(get("DYNAMIC_QUANTIZATION_GROUP_SIZE")),
        }

    def _compiled_name(self) -> str:
        core = require("openvino", extra="openvino").Core()
        return str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()


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
