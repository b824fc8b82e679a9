"""Text encoders, with or without a head: loaded with transformers, as functions of token ids and mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.artifact.safetensors_file import read_json
from negawatt.conversion.runner import of_torch
from negawatt.engine import classifier, traced
from negawatt.engine.transformers import TransformersBackend, classifier_of
from negawatt.errors import ArtifactError, EngineError, require


def kind_of(artifact: Artifact) -> str:
    """``decoder``, ``encoder``, or ``classifier``: an encoder with a head that labels texts.

    Raises:
        ArtifactError: a model of another kind.
    """
    if not artifact.formats & {"checkpoint", "packed"}:
        return "decoder"  # a GGUF file that has a checkpoint form; others are refused when that is made
    config = read_json(artifact.path / "config.json")
    name = str((config.get("architectures") or ["unknown"])[0])
    if config.get("is_encoder_decoder"):
        raise ArtifactError(
            f"{artifact.name} is a {name}, an encoder-decoder, which no format here holds yet"
        )
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "decoder"
    if name.endswith("Model"):
        return "encoder"
    if classifier.labels_of(artifact.checkpoint()):
        return "classifier"
    raise ArtifactError(
        f"{artifact.name} is a {name}; decoders, encoders without a head and classifiers of texts are "
        "exported here"
    )


def program(checkpoint: Path, kind: str) -> traced.Traced:
    """The encoder or classifier of a checkpoint folder as a function of tensors.

    Raises:
        EngineError: its files do not fit transformers' code for it.
        MissingDependency: torch or transformers is not installed.
    """
    return function(load(checkpoint, kind), kind)


def function(model: Any, kind: str) -> traced.Traced:
    """A model that `load` gave as a function of tensors."""
    return traced.encoder(model, traced.LOGITS if kind == "classifier" else traced.HIDDEN)


def load(checkpoint: Path, kind: str) -> Any:
    """The encoder or classifier of a checkpoint folder in fp32, ready to infer.

    Raises:
        EngineError: its files do not fit transformers' code for it.
        MissingDependency: torch or transformers is not installed.
    """
    if kind == "classifier":
        return classifier_of(checkpoint, "fp32")
    torch = require("torch", extra="transformers")
    transformers = require("transformers", extra="transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with traced.quietly():
            model, report = transformers.AutoModel.from_pretrained(
                checkpoint, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True,
                trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
    except (RuntimeError, ValueError, KeyError, OSError, ImportError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise EngineError(f"transformers cannot load {checkpoint}: {reason}") from exc
    if missing := sorted(n for n in report["missing_keys"] if "pooler." not in n):
        raise EngineError(f"{checkpoint} lacks {len(missing)} tensors, the first being {missing[0]}")
    return model.eval()


def call(checkpoint: Path, kind: str) -> Callable[..., Any]:
    """An encoder or classifier, run by transformers, as a function of numpy arrays."""
    return of_torch(program(checkpoint, kind).module)


def info() -> dict[str, Any]:
    """What runs an encoder here when nothing else is said."""
    return {"engine": "transformers", "version": TransformersBackend.version()}
