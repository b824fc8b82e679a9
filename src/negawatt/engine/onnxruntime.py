"""`OnnxRuntimeBackend`: ONNX Runtime's CPU kernels on a graph that torch.onnx traced."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from negawatt.artifact import Artifact
from negawatt.engine import classifier, embedder, onnx_graph
from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.lockstep import Lockstep, rows_of
from negawatt.engine.onnx_cache import CacheInPlace, GrowingCache
from negawatt.engine.padding import Padded, pad_of
from negawatt.errors import EngineError, UnsupportedSetting, installed_version, require


class OnnxRuntimeBackend(Backend):
    """Any causal language model, encoder or classifier of texts that torch.onnx can trace in transformers.

    Layers that an artifact holds as two factors run as two layers.

    Weight formats: ``native`` keeps the grid of packed weights where ONNX Runtime has it and is fp32
    otherwise; ``int8`` and ``int4-gN-sym|asym`` have one scale for 32 or N weights, rounded to nearest,
    the embedding and head in 8 bits, and multiply activations rounded to 8 bits.
    """

    name: ClassVar[str] = "onnxruntime"
    weight_formats: ClassVar[tuple[str, ...]] = onnx_graph.FORMATS
    starting_formats: ClassVar[tuple[str, ...]] = ("native", "int8")
    searched: ClassVar[bool] = False
    has_speculation: ClassVar[bool] = True
    classifies: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    @classmethod
    def version(cls) -> str:
        """Version of ONNX Runtime, for example ``1.32.0``."""
        return installed_version("onnxruntime", extra="onnx")

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        target = cache / f"{cls.version()}-{onnx_graph.REVISION}-{weight_format}"
        if not target.exists():
            onnx_graph.make_onnx(Artifact.open(artifact_path), weight_format, target)
        return target

    def load(self, path: Path) -> None:
        self._session = session(path, self.settings.threads)
        self.labels = classifier.labels_of(path) if (path / "config.json").exists() else ()
        if self.labels:
            self._pad, self.vocab_size = pad_of(path), len(self.labels)
            return
        if (known := embedder.found(path, self.settings.pooling)) is not None:
            self.pooling, self._pad = known
            self.vocab_size = int(self.pooling.width or 0)
            return
        past = [i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")]
        shapes = {i.name: (int(i.shape[1]), int(i.shape[3])) for i in past}
        self._logits, *presents = [o.name for o in self._session.get_outputs()]
        notes = self._session.get_modelmeta().custom_metadata_map
        in_place = notes.get(onnx_graph.CACHE) == onnx_graph.IN_PLACE
        self._cache = (CacheInPlace if in_place else GrowingCache)(shapes, presents)
        self._batch = Lockstep()
        self.vocab_size = int(self._session.get_outputs()[0].shape[2])

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        if self.labels or self.pooling is not None:
            given = Padded.of([chunk.tokens for chunk in chunks], self._pad)
            with _translated("run the model"):
                feeds = {"input_ids": given.tokens, "attention_mask": given.mask}
                (found,) = self._session.run(None, feeds)
            if self.pooling is None:
                return classifier.rows_of(found)
            return embedder.rows_of(found, chunks, self.pooling)
        step = self._batch.step(chunks)
        with _translated("run the model"):
            if step.fresh:
                self._cache.empty(len(chunks))
            elif step.reordered:
                self._cache.keep(step.kept)
            new = step.tokens.shape[1]
            bound = self._session.io_binding()
            bound.bind_cpu_input("input_ids", step.tokens)
            bound.bind_cpu_input("attention_mask", np.ascontiguousarray(step.mask))
            bound.bind_cpu_input("position_ids", np.ascontiguousarray(step.positions))
            bound.bind_cpu_input("logits_to_keep", np.arange(new - step.wanted, new))
            bound.bind_output(self._logits)
            self._cache.bind(bound, new)
            self._session.run_with_iobinding(bound)
            logits, *presents = bound.get_outputs()
            self._cache.ran(presents, new)
            return rows_of(logits.numpy(), chunks)

    def release(self, slot: int) -> None:
        if self.pooling is None and not self.labels:
            self._batch.release(slot)

    def truncate(self, slot: int, length: int) -> None:
        if self.settings.batch > 1:
            raise UnsupportedSetting(f"{self.name} takes tokens back at batch 1 only")
        self._batch.truncate(length)
        self._cache.truncate(length)

    def info(self) -> dict[str, object]:
        """Keys: ``version``, ``provider``, ``threads`` (0: one for each core)."""
        return facts(self._session)


def session(folder: Path, threads: int | None, *, profile: Path | None = None) -> Any:
    """An inference session on the model in `folder`; with `profile`, one that notes every kernel run.

    Raises:
        EngineError: the library cannot load it.
        MissingDependency: ONNX Runtime is not installed.
    """
    runtime = require("onnxruntime", extra="onnx")
    runtime.disable_telemetry_events()
    runtime.set_default_logger_severity(3)  # its advice is not for users
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that wait by turning burn joules for nothing, and stall a machine that is shared.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    with _translated(f"load {folder}"):
        return runtime.InferenceSession(
            folder / onnx_graph.MODEL, options, providers=["CPUExecutionProvider"]
        )


def facts(opened: Any) -> dict[str, object]:
    """What runs a session: ``version``, ``provider``, ``threads`` (0: one for each core)."""
    return {
        "version": OnnxRuntimeBackend.version(),
        "provider": opened.get_providers()[0],
        "threads": int(opened.get_session_options().intra_op_num_threads),
    }


def kernels(folder: Path) -> dict[str, int]:
    """The kernels that multiply in one step of the model in `folder`, and how often each ran.

    Told by the library's own profile of a step of one token, after its fusions.
    """
    with tempfile.TemporaryDirectory() as place:
        opened = session(folder, 1, profile=Path(place) / "step")
        feeds = {}
        for value in opened.get_inputs():
            shape = [side if isinstance(side, int) else 1 for side in value.shape]
            if value.name.startswith("past_key_values."):
                shape[2] = 0
            feeds[value.name] = np.zeros(shape, np.float32 if "float" in value.type else np.int64)
        feeds["attention_mask"][:] = 1
        with _translated("run the model"):
            opened.run(None, feeds)
        events = json.loads(Path(opened.end_profiling()).read_text("utf-8"))
    found = Counter(
        event["args"]["op_name"] for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )  # fmt: skip
    return {name: n for name, n in sorted(found.items()) if any(word in name for word in _MULTIPLY)}


_MULTIPLY = ("MatMul", "Gemm", "Attention", "GatherBlockQuantized")
"""Parts of the names of kernels that read weights or the cache."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the library raises into an `EngineError` that says what could not be done."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
             "NotImplemented", "RuntimeException", "EPFail")  # fmt: skip
    raised = tuple(getattr(state, name) for name in names)
    try:
        yield
    except MemoryError as exc:
        raise EngineError(f"onnxruntime cannot {what}: out of memory") from exc
    except (RuntimeError, ValueError, *raised) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        if "bad_alloc" in reason or "Failed to allocate" in reason:
            reason = "out of memory"
        raise EngineError(f"onnxruntime cannot {what}: {reason}") from exc
