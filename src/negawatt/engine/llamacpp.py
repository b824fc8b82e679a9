"""llama.cpp as a `Backend`: GGUF weights, ragged batches, quantized KV cache, tokens taken back."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from negawatt.artifact import Artifact
from negawatt.engine.backend import Backend, Chunk, Logits, in_parts
from negawatt.engine.device import Device
from negawatt.engine.llamacpp_devices import asked_apart, placed, placement
from negawatt.engine.llamacpp_library import (
    FILE_TYPES,
    GGML_TYPES,
    Library,
    choose_variant,
    loaded,
    runtime_folder,
)
from negawatt.engine.settings import Settings
from negawatt.errors import EngineError, UnsupportedSetting
from negawatt.home import written_beside

TOKENS_PER_STEP = 2048
"""Most tokens handed to one ``llama_decode``."""


class LlamaCppBackend(Backend):
    """llama.cpp on the CPU, with Vulkan devices beside it.

    A weight format is one GGUF type for all matrices; ``-head8`` keeps the embedding, which is
    also the output head where the two are tied, in 8 bits.
    """

    name: ClassVar[str] = "llamacpp"
    weight_formats: ClassVar[tuple[str, ...]] = (
        "native", "f16", "q8_0", "q4_1-head8", "q4_0-head8", "q4_0", "iq4_nl-head8", "iq4_nl",
    )  # fmt: skip
    plain_formats: ClassVar[tuple[str, ...]] = ("native", "f16", "q4_1-head8")
    starting_formats: ClassVar[tuple[str, ...]] = ("native", "q8_0", "q4_0-head8")
    kv_caches: ClassVar[tuple[str, ...]] = ("default", "f16", "q8_0")
    devices: ClassVar[tuple[str, ...]] = ("cpu", "vulkan")
    has_builds: ClassVar[bool] = True
    has_gpu_layers: ClassVar[bool] = True
    has_flash_attention: ClassVar[bool] = True
    has_speculation: ClassVar[bool] = True
    has_drafts: ClassVar[bool] = True
    shares: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lengths = [0] * settings.batch
        self._pool_tokens: int | None = None

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.kv_cache == "q8_0" and settings.flash_attention is False:
            raise UnsupportedSetting("llamacpp needs flash attention for a q8_0 KV cache")

    @classmethod
    def version(cls) -> str:
        return "v" + next(runtime_folder().glob("libllama.*so")).stem.rpartition(".v")[2]

    @classmethod
    def accelerators(cls) -> list[Device]:
        """Those that the runtime for Vulkan finds."""
        return asked_apart()

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        source = Artifact.open(artifact_path).gguf()
        if weight_format == "native":
            return source
        target = cache / f"{weight_format}.gguf"
        if not target.exists():
            folder = runtime_folder()
            library = loaded(folder, choose_variant(folder, source))
            with written_beside(target) as temporary:
                _quantize(library, source, temporary, weight_format)
        return target

    def load(self, path: Path) -> None:
        folder = runtime_folder(self.settings.device)
        lib = self._lib = loaded(folder, choose_variant(folder, path))
        params = placed(lib, self.settings)
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise EngineError(f"llama.cpp cannot load {path}: {lib.last_message()}")
        n_layers, wanted = int(lib.llama_model_n_layer(self._model)), self.settings.gpu_layers or 0
        if wanted > n_layers:
            raise EngineError(f"{path.name} has {n_layers} layers, of which {wanted} cannot be placed")
        self._context = lib.llama_init_from_model(self._model, self._context_params())
        if not self._context:
            raise EngineError(f"llama.cpp cannot make a context for {path}: {lib.last_message()}")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(TOKENS_PER_STEP, 0, 1)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocabulary))

    def _context_params(self) -> C.Structure:
        settings = self.settings
        params = self._lib.llama_context_default_params()
        # One pool also lets a step mix sequences that advance by different numbers of tokens, which separate
        # caches evaluate one length after the other.
        params.kv_unified = self._pool_tokens is not None
        params.n_ctx = self._pool_tokens or settings.max_context * settings.batch
        params.n_seq_max = len(self._lengths)
        params.n_batch = TOKENS_PER_STEP
        params.n_threads = params.n_threads_batch = settings.threads or len(os.sched_getaffinity(0))
        if settings.flash_attention is not None:
            params.flash_attn_type = int(settings.flash_attention)
        if settings.kv_cache != "default":
            params.type_k = params.type_v = GGML_TYPES[settings.kv_cache]
        if settings.kv_cache == "q8_0":
            params.flash_attn_type = 1
        return params  # type: ignore[no-any-return]

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        return in_parts(chunks, TOKENS_PER_STEP, self._step)

    def _step(self, chunks: Sequence[Chunk]) -> list[Logits]:
        batch, lengths = self._batch, self._lengths
        n = 0
        outputs: list[range] = []
        for chunk in chunks:
            position, count = lengths[chunk.slot], len(chunk.tokens)
            if position + count > self.settings.max_context:
                raise EngineError(
                    f"a sequence of {position + count} tokens does not fit max_context "
                    f"{self.settings.max_context}"
                )
            for k, token in enumerate(chunk.tokens):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, position + k, 1
                batch.seq_id[n][0] = chunk.slot
                batch.logits[n] = k >= count - chunk.rows
                n += 1
            outputs.append(range(n - chunk.rows, n))
            lengths[chunk.slot] = position + count
        batch.n_tokens = n
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise EngineError(
                f"llama.cpp could not evaluate {n} tokens (code {code}): {self._lib.last_message()}"
            )
        return [self._rows(output) for output in outputs]

    def _rows(self, output: range) -> Logits:
        """Logits of consecutive outputs lie side by side in llama.cpp's own memory: a view."""
        if not output:
            return np.empty((0, self.vocab_size), np.float32)
        first = self._lib.llama_get_logits_ith(self._context, output.start)
        if not first:
            raise EngineError(f"llama.cpp kept no logits for token {output.start}")
        return np.ctypeslib.as_array(first, (len(output), self.vocab_size))

    def release(self, slot: int) -> None:
        self.truncate(slot, 0)

    def truncate(self, slot: int, length: int) -> None:
        if not self._lib.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise EngineError(f"llama.cpp cannot take back tokens of this model's sequence {slot}")
        self._lengths[slot] = length

    def refuse_draft(self, draft: Backend) -> None:
        assert isinstance(draft, LlamaCppBackend)
        shares = "a draft must share the vocabulary of the model that it proposes to"
        if draft.vocab_size != self.vocab_size:
            raise EngineError(
                f"the draft has {draft.vocab_size} tokens and the model {self.vocab_size}; {shares}"
            )
        text = self._lib.llama_vocab_get_text
        for token in range(self.vocab_size):
            theirs, ours = text(draft._vocabulary, token), text(self._vocabulary, token)
            if theirs != ours:
                said = [(each or b"").decode(errors="replace") for each in (theirs, ours)]
                raise EngineError(
                    f"token {token} is {said[0]!r} to the draft and {said[1]!r} to the model; {shares}"
                )

    def reserve(self, slots: int, tokens: int) -> None:
        self._lengths, self._pool_tokens = [0] * slots, tokens

    def share(self, source: int, target: int, length: int) -> None:
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        self._lengths[target] = length

    def info(self) -> dict[str, object]:
        """Keys: ``release``, ``variant``, ``kernels``, and on another device `placement`'s."""
        elsewhere = {} if self.settings.device == "cpu" else placement(self._lib, self._model)
        return {
            "release": self._lib.llama_version().decode(),
            "variant": self._lib.variant,
            "kernels": self._lib.llama_print_system_info().decode().strip(" |"),
            **elsewhere,
        }


def _quantize(library: Library, source: Path, target: Path, weight_format: str) -> None:
    """Store all matrices of `source` in one type, the embedding and head in 8 bits if so named."""
    body, _, head = weight_format.partition("-")
    params = library.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[body]
    params.allow_requantize = params.pure = True
    params.token_embedding_type = params.output_tensor_type = GGML_TYPES["q8_0" if head == "head8" else body]
    params.nthread = len(os.sched_getaffinity(0))
    if library.llama_model_quantize(os.fsencode(source), os.fsencode(target), C.byref(params)) != 0:
        raise EngineError(
            f"llama.cpp cannot store {source.name} as {weight_format}: {library.last_message()}"
        )
