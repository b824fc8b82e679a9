"""The modules of a model as transformers defines them, made without memory for their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        model = make(config).eval()
    _compute_positions(model)
    return model


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


def _compute_positions(model: Any) -> None:
    """Fill embeddings of positions that are a formula, which no checkpoint stores, and freeze them there."""
    import torch

    for module in model.modules():
        if hasattr(module, "create_weight"):
            weight = torch.empty(module.weight.shape)
            module._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
            values = module.create_weight()
            del module._parameters["weight"]
            module.register_buffer("weight", values, persistent=False)


_OTHER_NAMES = {"lm_head.weight": ("embed_out.weight",)}
"""Parameters that checkpoints call otherwise than modules do (GPT-NeoX's head)."""


def _tied(model: Any) -> dict[str, str]:
    """Parameters that are others', as the configuration has it: what a class could tie need not be tied."""
    if hasattr(model, "all_tied_weights_keys"):
        return dict(model.all_tied_weights_keys)
    return dict(model._tied_weights_keys or {}) if model.config.tie_word_embeddings else {}


def _matched(model: Any, source: Source) -> tuple[dict[str, str], list[str]]:
    """The checkpoint's name of every parameter, and the parameters it has none for."""
    prefix = f"{model.base_model_prefix}."
    tied = _tied(model)
    names, missing = {}, []
    for path, _ in model.named_parameters(remove_duplicate=False):
        stored = [path, *_OTHER_NAMES.get(path, ()), *([tied[path]] if path in tied else [])]
        ways = [way for each in stored for way in (each, each.removeprefix(prefix), prefix + each)]
        found = next((way for way in ways if way in source.tensors), None)
        if found is None and ".pooler." in f".{path}":
            continue  # not run here, and often not stored
        if found is None:
            missing.append(path)
        else:
            names[path] = found
    return names, missing


def blocks_of(model: Any, source: Source) -> dict[str, Any]:
    """The blocks by their paths, in the order in which they run.

    Raises:
        ArtifactError: it has no list of blocks, or several that are not encoder and decoder.
    """
    import torch

    lists = [(path, module) for path, module in model.named_modules()
             if isinstance(module, torch.nn.ModuleList)]  # fmt: skip
    if model.config.is_encoder_decoder:
        wanted = lists
        n_expected = 2
    else:
        wanted = [(p, m) for p, m in lists if len(m) == model.config.num_hidden_layers]
        n_expected = 1
    outermost = [(p, m) for p, m in wanted if not any(p.startswith(f"{q}.") for q, _ in wanted)]
    if len(outermost) != n_expected:
        raise ArtifactError(
            f"{source.name} is a {type(model).__name__} with {len(outermost)} lists of blocks; passes here "
            "work on models that have one, or an encoder's and a decoder's"
        )
    return {f"{path}.{number}": block for path, blocks in outermost for number, block in enumerate(blocks)}


def encoder_length(model: Any, paths: Sequence[str]) -> int:
    """How many of the blocks at `paths` are the encoder's, where there is a decoder too; else 0."""
    if not model.config.is_encoder_decoder:
        return 0
    encoder = next(path for path, module in model.named_modules() if module is model.get_encoder())
    return sum(path.startswith(f"{encoder}.") for path in paths)


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
