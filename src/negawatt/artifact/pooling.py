"""`Pooling`: how a model's hidden states become one vector for a text, as its own files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.artifact.safetensors_file import read_json
from negawatt.errors import ArtifactError

MODULES = "modules.json"
MODES = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
"""Sentence-transformers' names: of all tokens, of the first, of the last; weights rise with the position."""

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSequenceClassification", "MTModel")
"""Ends of the names of architectures that write text or label it."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """See the module's text.

    Attributes:
        modes: one of `MODES`, or several whose vectors are joined.
        normalized: whether vectors have length 1.
        max_tokens: of a text with its special tokens, if the model states it.
        dimensions: lengths to which its vectors may be cut; empty: none; None: any, which models trained
            for it (Matryoshka representation learning, Kusupati et al. 2022) state.
        prompt: what is put before every text.
        width: length of the vectors, if the model's files state it.
    """

    modes: tuple[str, ...] = ("mean",)
    normalized: bool = True
    max_tokens: int | None = None
    dimensions: tuple[int, ...] | None = ()
    prompt: str = ""
    width: int | None = None


def pooling_of(folder: Path, asked: str = "default") -> Pooling | None:
    """How the model in a checkpoint folder embeds texts; None where it does something else.

    Its own ``modules.json`` says, in sentence-transformers' form. An encoder without one takes the mean of
    all tokens, to length 1. A model that writes text embeds only when `asked` to.

    Args:
        folder: holds ``config.json``.
        asked: one of `MODES`, in place of what the files say; ``default`` leaves that.

    Raises:
        ArtifactError: the files name a module or a way of pooling that is not known here.
    """
    config = read_json(folder / "config.json")
    stated = _stated(folder)
    if asked != "default":
        base = stated or Pooling()
        stated = Pooling((asked,), base.normalized, base.max_tokens, (), base.prompt)
    elif _classifies(config):
        return None  # its modules.json, if it has one, is of what it was made from
    elif stated is None and _is_encoder(config):
        stated = Pooling()
    if stated is None:
        return None
    positions = _most_positions(config)
    limits = [n for n in (stated.max_tokens, positions) if n is not None]
    dimensions = config.get("matryoshka_dimensions")
    cuts: tuple[int, ...] | None = tuple(int(n) for n in dimensions) if isinstance(dimensions, list) else ()
    if not cuts and config.get("is_matryoshka") is True:
        cuts = None
    hidden = next((n for name in _WIDTHS if isinstance(n := config.get(name), int)), None)
    width = None if hidden is None else hidden * len(stated.modes)
    return Pooling(
        stated.modes, stated.normalized, min(limits, default=None), cuts, stated.prompt, width
    )  # fmt: skip


def _classifies(config: dict[str, Any]) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")


def _is_encoder(config: dict[str, Any]) -> bool:
    name = str((config.get("architectures") or [""])[0])
    return bool(name) and not name.endswith(_WRITERS) and not config.get("is_encoder_decoder")


def _most_positions(config: dict[str, Any]) -> int | None:
    """Tokens that its table of positions has room for; some count from behind the padding token."""
    most = config.get("max_position_embeddings")
    if not isinstance(most, int):
        return None
    offset = config.get("model_type") in ("mpnet", "roberta", "xlm-roberta", "camembert")
    return most - int(config.get("pad_token_id") or 0) - 1 if offset else most


def _stated(folder: Path) -> Pooling | None:
    """What ``modules.json`` and the files it names say."""
    modules = _modules(folder, "type", "path")
    if modules is None:
        return None
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise ArtifactError(f"{folder / MODULES} names the module {unknown[0]}, which is not known here")
    modes: tuple[str, ...] = ("mean",)
    for kind, (_, path) in zip(kinds, modules, strict=True):
        if kind == "Pooling":
            modes = _modes(_inside(folder, path) / "config.json")
    limit = None
    for name in ("sentence_bert_config.json", "sentence_roberta_config.json"):
        if (folder / name).is_file():
            limit = read_json(folder / name).get("max_seq_length")
    return Pooling(modes, "Normalize" in kinds, limit, (), _prompt(folder))


def _modules(folder: Path, *fields: str) -> list[tuple[str, ...]] | None:
    """These fields of every module that ``modules.json`` lists; None where there is no such file."""
    file = folder / MODULES
    if not file.is_file():
        return None
    try:
        modules = json.loads(file.read_text("utf-8"))
        return [tuple(str(module[field]) for field in fields) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ArtifactError(f"{file} lists no modules: {exc}") from exc


def copy_pooling_files(source: Path, target: Path, copy: Callable[[Path, Path], object]) -> None:
    """Copy the files that ``modules.json`` of `source` names in folders of their own.

    Raises:
        ArtifactError: it cannot be read.
    """
    own = source.resolve()
    for (path,) in _modules(source, "path") or ():
        place = _inside(source, path)
        config = (place / "config.json").relative_to(own)
        if place != own and (source / config).is_file():
            (target / config).parent.mkdir(parents=True, exist_ok=True)
            copy(source / config, target / config)


def _inside(folder: Path, path: str) -> Path:
    place = (folder / path).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder / MODULES} points out of its folder: {path}")
    return place


def _modes(file: Path) -> tuple[str, ...]:
    config = read_json(file)
    named = config.get("pooling_mode")
    if named is not None:
        modes = tuple(named) if isinstance(named, list) else (str(named),)
    else:
        modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag))
    if not modes or not set(modes) <= set(MODES):
        raise ArtifactError(f"{file} says pooling {', '.join(modes) or 'nothing'}; known: {', '.join(MODES)}")
    if config.get("include_prompt") is False:
        raise ArtifactError(f"{file} leaves prompts out of the pooling, which is not known here")
    return modes


def _prompt(folder: Path) -> str:
    file = folder / "config_sentence_transformers.json"
    if not file.is_file():
        return ""
    config = read_json(file)
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    return str(prompts.get(name, "")) if name else ""
