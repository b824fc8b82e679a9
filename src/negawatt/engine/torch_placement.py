"""Models of transformers on another device than the processor: all of a model, or its last layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from negawatt.engine.device import Device
from negawatt.engine.settings import Settings
from negawatt.errors import EngineError, require


@dataclass(frozen=True)
class TorchPlacement:
    """Where a model lies.

    Attributes:
        inputs: the device that it takes its inputs on.
        info: ``layers``, by name of the device how many; ``head``, the name of the head's device; and
            ``devices``, by name what those beside the processor are. Nothing where all is on the processor.
    """

    inputs: Any
    info: dict[str, object]


def accelerators() -> list[Device]:
    """The devices that torch finds here, ROCm's among them, which it calls ``cuda`` too.

    Raises:
        MissingDependency: torch is not installed.
        EngineError: it is a build for processors.
    """
    torch = require("torch", extra="transformers")
    if torch.version.cuda is None and torch.version.hip is None:
        raise EngineError(
            f"torch {torch.__version__} computes on processors only; install its build for your GPU"
        )
    if not torch.cuda.is_available():
        return []
    found = ((n, torch.cuda.get_device_properties(n)) for n in range(torch.cuda.device_count()))
    return [Device("cuda", f"cuda:{n}", each.name, each.total_memory) for n, each in found]


def place(model: Any, settings: Settings) -> TorchPlacement:
    """Move a loaded model's layers to where the settings want them.

    Of a part of a model the last layers, the norm after them and the head go to the device, and accelerate
    moves what flows between layers. (Loading with a map of devices would compute nothing on the processor: it
    streams the weights of the processor's layers to the device.) A head that is tied to the embedding gets
    weights of its own there.

    Raises:
        EngineError: the device is not here, or the model has fewer layers.
        MissingDependency: a part is to be placed, and accelerate is not installed.
    """
    torch = require("torch", extra="transformers")
    if settings.device == "cpu":
        return TorchPlacement(torch.device("cpu"), {})
    _refuse_absent(settings.device)
    at = torch.device(settings.device, 0)
    path, layers = _layers_of(model)
    wanted = len(layers) if settings.gpu_layers is None else settings.gpu_layers
    if wanted > len(layers):
        raise EngineError(f"the model has {len(layers)} layers, of which {wanted} cannot be placed")
    if wanted == len(layers):
        model.to(at)
    elif wanted:
        _place_last(model, path, wanted, at)
    inputs = at if wanted == len(layers) else torch.device("cpu")
    return TorchPlacement(inputs, _placed(model, layers))


def _refuse_absent(device: str) -> None:
    if device == "cuda" and not accelerators():
        raise EngineError("torch finds no cuda device here to place layers on")


def _place_last(model: Any, path: str, wanted: int, at: Any) -> None:
    torch, accelerate = require("torch", extra="transformers"), require("accelerate", extra="placement")
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    layers = model.get_submodule(path)
    after = False
    places: dict[str, Any] = {}
    base = path.rpartition(".")[0]
    for name, _ in model.get_submodule(base).named_children():
        full = f"{base}.{name}" if base else name
        if full == path:
            first = len(layers) - wanted
            places |= {f"{path}.{n}": at if n >= first else "cpu" for n in range(len(layers))}
            after = True
        else:
            places[full] = (
                at if after and any(True for _ in model.get_submodule(full).parameters()) else "cpu"
            )
    for name, each in model.named_modules():
        covered = any(
            known == name or known.startswith(f"{name}.") or name.startswith(f"{known}.") for known in places
        )
        if name and not covered:
            places[name] = at if each is head else "cpu"
    accelerate.dispatch_model(model, places, main_device="cpu", skip_keys=model._skip_keys_device_placement)


def _layers_of(model: Any) -> tuple[str, Any]:
    """The list of a model's layers, and its name."""
    torch = require("torch", extra="transformers")
    wanted = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return name, module
    raise EngineError(f"{type(model).__name__} has no list of {wanted} layers to place")


def _placed(model: Any, layers: Any) -> dict[str, object]:
    head = model.get_output_embeddings()
    devices = [next(layer.parameters()).device for layer in layers]
    names = Counter(map(str, devices))
    last = devices[-1] if head is None else head.weight.device
    found = {str(each): _description(each) for each in {*devices, last} if each.type != "cpu"}
    return {"layers": dict(names), "head": str(last), **({"devices": found} if found else {})}


def _description(device: Any) -> str:
    torch = require("torch", extra="transformers")
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else f"torch's {device.type}"
