"""The devices beside the processor that llama.cpp finds, and which layers of a model lie on them.

``python -m negawatt.engine.llamacpp_devices`` prints the devices as JSON: drivers are loaded to tell, and a
driver may crash, so that is done in a process of its own.
"""

from __future__ import annotations

import ctypes as C
import json
import subprocess
import sys
from collections import Counter

from negawatt.engine.device import Device
from negawatt.engine.llamacpp_library import Library, loaded, runtime_folder, variants
from negawatt.engine.settings import Settings
from negawatt.errors import EngineError, NegawattError

ACCELERATORS = (1, 2)
"""``GGML_BACKEND_DEVICE_TYPE_GPU`` and ``_IGPU``, one that shares the processor's memory."""
ASKING_DEADLINE_S = 60.0
_NO_DEVICES = (C.c_void_p * 1)()


def devices(library: Library) -> list[Device]:
    """What llama.cpp would place layers on; its kernels for it are loaded.

    It leaves out drivers that compute on the processor, such as Mesa's lavapipe, unless the environment
    variable ``GGML_VK_VISIBLE_DEVICES`` names their numbers.

    Raises:
        EngineError: the runtime has no such kernels, or what they need is not installed.
    """
    library.accelerate()
    handles = map(library.ggml_backend_dev_get, range(library.ggml_backend_dev_count()))
    return [_device(library, each) for each in handles if library.ggml_backend_dev_type(each) in ACCELERATORS]


def _device(library: Library, handle: int) -> Device:
    free, total = C.c_size_t(), C.c_size_t()
    library.ggml_backend_dev_memory(handle, C.byref(free), C.byref(total))
    name, description = (
        getattr(library, f"ggml_backend_dev_{what}")(handle).decode(errors="replace")
        for what in ("name", "description")
    )
    return Device("vulkan", name, description, total.value or None)


def placed(library: Library, settings: Settings) -> C.Structure:
    """Parameters for loading a model with its layers where the settings want them.

    llama.cpp counts the head as one more layer, the first to go to a device: with all layers it is
    everything but the embedding.

    Raises:
        EngineError: layers are to be on a device, and there is none.
    """
    params: C.Structure = library.llama_model_default_params()
    if settings.device == "cpu" or settings.gpu_layers == 0:
        params.n_gpu_layers = 0
        params.devices = C.addressof(_NO_DEVICES)  # else a long prompt's products would go there
        return params
    if not devices(library):
        raise EngineError(
            "llama.cpp finds no Vulkan device here to place layers on; drivers that compute on the processor "
            "count only if GGML_VK_VISIBLE_DEVICES names them"
        )
    if settings.gpu_layers is not None:
        params.n_gpu_layers = settings.gpu_layers + 1
    return params


def placement(library: Library, model: int) -> dict[str, object]:
    """Where a loaded model's layers lie: ``layers``, by name of the device how many; ``head``, the name of
    the head's device; and ``devices``, by name what those beside the processor are, where one holds any."""
    n_layers = library.llama_model_n_layer(model)
    layers = Counter(library.placed("layer_device", model, number) for number in range(n_layers))
    found: dict[str, object] = {"layers": dict(layers), "head": library.placed("head_device", model)}
    if set(layers) == {"cpu"}:
        return found
    return {**found, "devices": {each.name: each.description for each in devices(library)}}


def asked_apart() -> list[Device]:
    """`devices` of this machine, asked in another process.

    Raises:
        MissingDependency: no runtime for them was pulled.
        EngineError: they cannot be told, and why.
    """
    runtime_folder("vulkan")
    command = [sys.executable, "-m", "negawatt.engine.llamacpp_devices"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ASKING_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError("llama.cpp hung when it looked for Vulkan devices") from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        why = last[-1] if last and done.returncode > 0 else f"it ended with code {done.returncode}"
        raise EngineError(f"llama.cpp cannot tell which Vulkan devices are here: {why}")
    return [Device.from_json(each) for each in json.loads(done.stdout)]


def main() -> None:
    try:
        folder = runtime_folder("vulkan")
        # Any kernels for this processor will do: nothing is computed.
        found = devices(loaded(folder, variants(folder)[0]))
    except NegawattError as exc:
        sys.exit(str(exc))
    print(json.dumps([each.to_json() for each in found]))


if __name__ == "__main__":
    main()
