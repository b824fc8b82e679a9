"""llama.cpp's C interface, bound by ctypes, for the runtimes that the catalogue pins by hash.

The runtime holds one compute library for every x86 generation (or ARM level); the best one that
*really runs* on this machine is chosen: each candidate proves itself first by evaluating a prompt
in a process of its own, because a library may pass the CPU-feature check and still die with an
illegal instruction (AMX under some hypervisors does). The outcome is remembered per machine.

Structures are laid out as in ``llama.h`` of the pinned release; `Library` checks the layout against
the release's known defaults before anything else is called, so that another release is refused
with a sentence instead of corrupting memory.
"""

from __future__ import annotations

import ctypes as C
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from negawatt import catalog
from negawatt.errors import EngineError, MissingDependency
from negawatt.home import home, write_json

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "iq4_nl": 25, "bf16": 32}
"""Numbers of ``enum ggml_type`` and ``enum llama_ftype``."""
VULKAN_KERNELS = "libggml-vulkan.so"
RUNTIMES = {"cpu": ("llamacpp", "llamacpp-vulkan"), "vulkan": ("llamacpp-vulkan",)}
"""Device → the runtimes that can run on it, the preferred one first."""


class ModelParams(C.Structure):
    """``struct llama_model_params``: what comes after these fields keeps its defaults, so only its size
    matters. ``devices`` ends with a null; where it is null itself, llama.cpp takes all that it would use."""

    _fields_ = [
        ("devices", C.c_void_p),
        ("tensor_buft_overrides", C.c_void_p),
        ("n_gpu_layers", C.c_int32),
        ("split_mode", C.c_int32),
        ("opaque", C.c_uint8 * 136),
    ]


class ContextParams(C.Structure):
    """``struct llama_context_params``, with room at the end for fields of later releases."""

    _fields_ = [
        ("n_ctx", C.c_uint32),
        ("n_batch", C.c_uint32),
        ("n_ubatch", C.c_uint32),
        ("n_seq_max", C.c_uint32),
        ("n_rs_seq", C.c_uint32),
        ("n_outputs_max", C.c_uint32),
        ("reserved", C.c_uint32),
        ("n_threads", C.c_int32),
        ("n_threads_batch", C.c_int32),
        ("ctx_type", C.c_int32),
        ("rope_scaling_type", C.c_int32),
        ("pooling_type", C.c_int32),
        ("attention_type", C.c_int32),
        ("flash_attn_type", C.c_int32),
        ("rope", C.c_float * 6),
        ("yarn_orig_ctx", C.c_uint32),
        ("defrag_thold", C.c_float),
        ("cb_eval", C.c_void_p),
        ("cb_eval_user_data", C.c_void_p),
        ("type_k", C.c_int32),
        ("type_v", C.c_int32),
        ("abort_callback", C.c_void_p),
        ("abort_callback_data", C.c_void_p),
        ("embeddings", C.c_bool),
        ("offload_kqv", C.c_bool),
        ("no_perf", C.c_bool),
        ("op_offload", C.c_bool),
        ("swa_full", C.c_bool),
        ("kv_unified", C.c_bool),
        ("samplers", C.c_void_p),
        ("n_samplers", C.c_size_t),
        ("room", C.c_uint64 * 8),
    ]


class QuantizeParams(C.Structure):
    """``struct llama_model_quantize_params``."""

    _fields_ = [
        ("nthread", C.c_int32),
        ("ftype", C.c_int32),
        ("output_tensor_type", C.c_int32),
        ("token_embedding_type", C.c_int32),
        ("allow_requantize", C.c_bool),
        ("quantize_output_tensor", C.c_bool),
        ("only_copy", C.c_bool),
        ("pure", C.c_bool),
        ("keep_split", C.c_bool),
        ("dry_run", C.c_bool),
        ("pointers", C.c_void_p * 4),
        ("room", C.c_uint64 * 4),
    ]


class Batch(C.Structure):
    """``struct llama_batch``: parallel arrays over the tokens of one step."""

    _fields_ = [
        ("n_tokens", C.c_int32),
        ("token", C.POINTER(C.c_int32)),
        ("embd", C.c_void_p),
        ("pos", C.POINTER(C.c_int32)),
        ("n_seq_id", C.POINTER(C.c_int32)),
        ("seq_id", C.POINTER(C.POINTER(C.c_int32))),
        ("logits", C.POINTER(C.c_int8)),
    ]


_LogCallback = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
_POINTER, _INT = C.c_void_p, C.c_int32
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LogCallback, _POINTER]),
    "llama_print_system_info": (C.c_char_p, []),
    "llama_version": (C.c_char_p, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_quantize_default_params": (QuantizeParams, []),
    "llama_model_load_from_file": (_POINTER, [C.c_char_p, ModelParams]),
    "llama_init_from_model": (_POINTER, [_POINTER, ContextParams]),
    "llama_model_n_layer": (_INT, [_POINTER]),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
    "llama_vocab_get_text": (C.c_char_p, [_POINTER, _INT]),
    "llama_tokenize": (_INT, [_POINTER, C.c_char_p, _INT, C.POINTER(_INT), _INT, C.c_bool, C.c_bool]),
    "llama_batch_init": (Batch, [_INT, _INT, _INT]),
    "llama_decode": (_INT, [_POINTER, Batch]),
    "llama_get_logits_ith": (C.POINTER(C.c_float), [_POINTER, _INT]),
    "llama_get_memory": (_POINTER, [_POINTER]),
    "llama_memory_seq_rm": (C.c_bool, [_POINTER, _INT, _INT, _INT]),
    "llama_memory_seq_cp": (None, [_POINTER, _INT, _INT, _INT, _INT]),
    "llama_model_quantize": (C.c_uint32, [C.c_char_p, C.c_char_p, C.POINTER(QuantizeParams)]),
}
_SIZE = C.POINTER(C.c_size_t)
_GGML_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_log_set": (None, [_LogCallback, _POINTER]),
    "ggml_backend_load": (_POINTER, [C.c_char_p]),
    "ggml_backend_dev_count": (C.c_size_t, []),
    "ggml_backend_dev_get": (_POINTER, [C.c_size_t]),
    "ggml_backend_dev_type": (_INT, [_POINTER]),
    "ggml_backend_dev_name": (C.c_char_p, [_POINTER]),
    "ggml_backend_dev_description": (C.c_char_p, [_POINTER]),
    "ggml_backend_dev_memory": (None, [_POINTER, _SIZE, _SIZE]),
}
"""Of ggml, llama.cpp's library of kernels."""
_MODEL_SIGNATURES: dict[str, tuple[str, list[Any]]] = {
    "layer_device": ("_ZNK11llama_model9dev_layerEi", [_POINTER, C.c_int]),
    "head_device": ("_ZNK11llama_model10dev_outputEv", [_POINTER]),
}
"""``llama_model::dev_layer`` and ``dev_output``: the device that a layer, or the head, was placed on."""


class Library:
    """The loaded runtime. Functions of the C interface are attributes (``lib.llama_decode``).

    Attributes:
        variant: the compute library in use, such as ``zen4`` or ``sapphirerapids``.
        messages: what llama.cpp logged last (warnings and errors), for error sentences.
    """

    def __init__(self, folder: Path, variant: str) -> None:
        self.folder, self.variant = folder, variant
        self.messages: list[str] = []
        self._accelerated = False
        C.CDLL(str(folder / "libggml-base.so"), mode=C.RTLD_GLOBAL)
        ggml = C.CDLL(str(_single(folder, "libggml.*so")), mode=C.RTLD_GLOBAL)
        self._bind(ggml, _GGML_SIGNATURES)
        self._callback = _LogCallback(self._log)
        self.ggml_log_set(self._callback, None)
        if not self._load(f"libggml-cpu-{variant}.so"):
            raise EngineError(f"llama.cpp's compute library {variant!r} does not load on this machine")
        self._llama = C.CDLL(str(_single(folder, "libllama.*so")), mode=C.RTLD_GLOBAL)
        self._bind(self._llama, _SIGNATURES)
        self._check_layout()
        self.llama_log_set(self._callback, None)
        self.llama_backend_init()

    def _bind(self, library: C.CDLL, signatures: Mapping[str, tuple[Any, list[Any]]]) -> None:
        for name, (restype, argtypes) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
            setattr(self, name, function)

    def _load(self, compute_library: str) -> bool:
        return bool(self.ggml_backend_load(os.fsencode(self.folder / compute_library)))

    def accelerate(self) -> None:
        """Load the kernels for devices beside the processor, once.

        Raises:
            EngineError: this runtime has none, or what they need is not installed.
        """
        if self._accelerated:
            return
        if not (self.folder / VULKAN_KERNELS).exists():
            raise EngineError(f"the llama.cpp runtime in {self.folder} has kernels for processors only")
        if not self._load(VULKAN_KERNELS):
            raise EngineError(
                f"llama.cpp's kernels for Vulkan do not load here ({self.last_message()}); they need the "
                "system's Vulkan loader, libvulkan.so.1, and a driver of the device"
            )
        self._accelerated = True

    def placed(self, function: str, model: int, *arguments: int) -> str:
        """What ``layer_device`` (of a model, layer) or ``head_device`` (model) tells: ``cpu``, or a name."""
        symbol, argtypes = _MODEL_SIGNATURES[function]
        method = getattr(self._llama, symbol)
        method.restype, method.argtypes = _POINTER, argtypes
        name = str(self.ggml_backend_dev_name(method(model, *arguments)).decode())
        return "cpu" if name == "CPU" else name

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"llama.cpp function {name} is not bound")

    def _log(self, level: int, text: bytes | None, _data: object) -> None:
        if level in (3, 4) and text:  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            self.messages = [*self.messages[-9:], text.decode(errors="replace").strip()]

    def last_message(self) -> str:
        return self.messages[-1] if self.messages else "no reason given"

    def _check_layout(self) -> None:
        context, quantize = self.llama_context_default_params(), self.llama_model_quantize_default_params()
        model = self.llama_model_default_params()
        found = (
            context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max, context.flash_attn_type,
            context.type_k, context.type_v, context.defrag_thold, context.no_perf, context.offload_kqv,
            context.n_samplers, quantize.quantize_output_tensor, quantize.pure, quantize.only_copy,
            model.devices, model.tensor_buft_overrides, model.n_gpu_layers, model.split_mode,
        )  # fmt: skip
        known = (
            512, 2048, 512, 1, -1, 1, 1, -1.0, True, True, 0, True, False, False, None, None, -1, 1,
        )  # fmt: skip
        if found != known:
            raise EngineError(
                f"the llama.cpp runtime in {self.folder} ({self.llama_version().decode()}) is not the "
                "release this version was made for; pull it again with: negawatt engines pull llamacpp"
            )


def _single(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise EngineError(f"expected one {pattern} in {folder}, found {len(found)}; pull the runtime again")
    return found[0]


_folders: set[Path] = set()


def loaded(folder: Path, variant: str) -> Library:
    """The library, loaded once in this process: llama.cpp keeps global state and our log callback.

    Raises:
        EngineError: this process has loaded another runtime, whose symbols have the same names.
    """
    _folders.add(folder)
    if len(_folders) > 1:
        _folders.discard(folder)
        raise EngineError(f"this process has loaded another llama.cpp runtime than {folder} already")
    return _loaded(folder, variant)


@cache
def _loaded(folder: Path, variant: str) -> Library:
    return Library(folder, variant)


def runtime_folder(device: str = "cpu") -> Path:
    """Folder of the pulled runtime that runs on a device, one of `RUNTIMES`.

    Raises:
        MissingDependency: it has not been pulled.
    """
    names = RUNTIMES[device]
    found = next(filter(None, map(catalog.find, names)), None)
    if found is None:
        what = "runtime" if device == "cpu" else f"runtime for {device} devices"
        raise MissingDependency(
            f"the llama.cpp {what} is not here yet; get it with: negawatt engines pull {names[0]}"
        )
    return _single(found, "**/libggml-base.so").parent


def variants(folder: Path) -> list[str]:
    """Compute libraries whose CPU-feature check passes here, best first."""
    scored: list[tuple[int, str]] = []
    C.CDLL(str(folder / "libggml-base.so"), mode=C.RTLD_GLOBAL)
    for file in folder.glob("libggml-cpu-*.so"):
        library = C.CDLL(str(file), mode=C.RTLD_LOCAL)
        score = int(library.ggml_backend_score())
        if score > 0:
            scored.append((score, file.stem.removeprefix("libggml-cpu-")))
    return [name for _, name in sorted(scored, reverse=True)]


def choose_variant(folder: Path, model: Path) -> str:
    """Best compute library that evaluates a prompt of `model` and survives; remembered per machine.

    ``NEGAWATT_LLAMACPP_VARIANT`` overrides the choice.

    Raises:
        EngineError: none survives; the message says how each died.
    """
    if forced := os.environ.get("NEGAWATT_LLAMACPP_VARIANT"):
        return forced
    memory = home() / "cache" / f"llamacpp-variant-{_machine_key(folder)}.json"
    try:
        remembered = json.loads(memory.read_text("utf-8"))
        if (folder / f"libggml-cpu-{remembered['variant']}.so").exists():
            return str(remembered["variant"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered yet, or not readable: find out again
    deaths: dict[str, str] = {}
    for variant in variants(folder):
        death = _trial_death(variant, model)
        if death is None:
            write_json(memory, {"variant": variant, "died": deaths})
            return variant
        deaths[variant] = death
    if len(set(deaths.values())) == 1:
        raise EngineError(f"llama.cpp cannot run {model.name} here: {next(iter(deaths.values()))}")
    told = "; ".join(f"{name}: {death}" for name, death in deaths.items()) or "none passes its feature check"
    raise EngineError(f"no llama.cpp compute library runs on this machine ({told})")


def _trial_death(variant: str, model: Path) -> str | None:
    """Evaluate a 32-token prompt with `variant` in another process; how it died, or None."""
    command = [sys.executable, "-m", "negawatt.engine.llamacpp_trial", variant, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    last = done.stderr.decode(errors="replace").strip().splitlines()
    return last[-1] if last else f"ended with code {done.returncode}"


def _machine_key(folder: Path) -> str:
    """Changes with the processor's features, the kernel, or the runtime."""
    try:
        cpu = next(
            x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        cpu = "unknown"
    text = "\n".join([cpu, os.uname().release, str(folder)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
