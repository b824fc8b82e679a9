"""The modules of a model as transformers defines them, made without memory for their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from negawatt.compress.source import Source
from negawatt.engine import quiet
from negawatt.errors import ArtifactError


def built(source: Source) -> tuple[Any, dict[str, str]]:
    """The model without weights, and the checkpoint's name of every parameter it has."""
    transformers = quiet.transformers(extra="compress")
    config = _config(transformers, source)
    named = getattr(transformers, str((source.config.get("architectures") or [""])[0]), None)
    missing: list[str] = []
    for maker in (named, transformers.AutoModel):
        if maker is None:
            continue
        model = _made(maker, config)
        names, missing = _matched(model, source)
        if not missing:
            return model, names
    raise ArtifactError(
        f"{source.name} lacks {len(missing)} tensors of its architecture, the first being {missing[0]}; "
        "fetch or make the model again"
    )


def without_weights(maker: Any, content: Mapping[str, Any], source: Source) -> Any:
    """The modules of a class of transformers for a config.json, with nothing in their parameters."""
    return _made(maker, _config(quiet.transformers(extra="compress"), source, content))


def _made(maker: Any, config: Any) -> Any:
    with _without_memory():
        make = maker._from_config if hasattr(maker, "_from_config") else maker.from_config
        return make(config).eval()


def _config(transformers: Any, source: Source, content: Mapping[str, Any] | None = None) -> Any:
    content = {k: v for k, v in (content or source.config).items() if k not in ("torch_dtype", "dtype")}
    kind = str(content.pop("model_type", ""))
    try:
        config = transformers.AutoConfig.for_model(kind, **content)
    except ValueError as exc:
        raise ArtifactError(
            f"transformers {transformers.__version__} has no code for {kind!r}, the type of {source.name}"
        ) from exc
    config.use_cache = False
    return config


def _matched(model: Any, source: Source) -> tuple[dict[str, str], list[str]]:
    """The checkpoint's name of every parameter, and the parameters it has none for."""
    prefix = f"{model.base_model_prefix}."
    tied = dict(getattr(model, "_tied_weights_keys", None) or {})
    names, missing = {}, []
    for path, _ in model.named_parameters(remove_duplicate=False):
        ways = [path, path.removeprefix(prefix), prefix + path]
        if path in tied:
            ways += [tied[path], tied[path].removeprefix(prefix)]
        found = next((way for way in ways if way in source.tensors), None)
        if found is None and ".pooler." in f".{path}":
            continue  # not run here, and often not stored
        if found is None:
            missing.append(path)
        else:
            names[path] = found
    return names, missing


def blocks_of(model: Any, source: Source) -> tuple[Any, str]:
    """The one list of blocks, and its path."""
    import torch

    n_layers = model.config.num_hidden_layers
    lists = [(path, module) for path, module in model.named_modules()
             if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers]  # fmt: skip
    outermost = [(p, m) for p, m in lists if not any(p.startswith(f"{q}.") for q, _ in lists)]
    if len(outermost) != 1:
        raise ArtifactError(
            f"{source.name} is a {type(model).__name__} with {len(outermost)} lists of blocks; passes here "
            "work on models that have one"
        )
    return outermost[0][1], outermost[0][0]


@contextmanager
def _without_memory() -> Iterator[None]:
    """Modules made here have parameters on the meta device; buffers, which are computed, are real."""
    import torch

    register = torch.nn.Module.register_parameter

    def empty(module: Any, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = empty
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register
