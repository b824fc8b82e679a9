"""A classification head for an encoder: the class that transformers has for it, and fresh weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from negawatt.compress.draft import Draft
from negawatt.compress.modules import without_weights
from negawatt.compress.source import Source
from negawatt.engine import quiet
from negawatt.errors import ArtifactError

if TYPE_CHECKING:
    import torch

SUFFIX = "ForSequenceClassification"


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model with a classification head."""
    return str((config.get("architectures") or [""])[0]).endswith(SUFFIX)


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a classifier, in the order of its outputs."""
    names: Mapping[str, str] = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def give_head(draft: Draft, source: Source, labels: Sequence[str], seed: int) -> list[str]:
    """Turn a draft into a classifier with a head of random weights, or keep the head that it has.

    Call it at the beginning of a pass, after a kill too.

    Returns:
        the names of the tensors that are new.

    Raises:
        ArtifactError: transformers has no classifier of this kind, or the source has other labels.
    """
    transformers = quiet.transformers(extra="compress")
    if is_classifier(source.config):
        if labels_of(source.config) != tuple(labels):
            raise ArtifactError(
                f"{source.name} tells {', '.join(labels_of(source.config))} apart, and the texts are "
                f"labelled {', '.join(labels)}; begin with the encoder that it was made from"
            )
        return []
    kind = str(source.config.get("model_type"))
    known = transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if kind not in known:
        raise ArtifactError(
            f"transformers {transformers.__version__} has no classifier for {kind!r}, the type of "
            f"{source.name}"
        )
    names = {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    draft.config |= {"architectures": [known[kind]], "problem_type": "single_label_classification", **names}
    draft.config.pop("num_labels", None)
    model = without_weights(getattr(transformers, known[kind]), draft.config, source)
    wanted = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    for name in source.tensors:  # what was a base model's own name becomes a name within the classifier
        full = name if name in wanted else prefix + name
        tensor = draft.tensors.pop(name, None)
        if tensor is not None and full in wanted:
            draft.tensors[full] = draft.tensors.get(full, tensor)
    held = {name if name in wanted else prefix + name for name in source.tensors}
    fresh = [path for path in wanted if path not in held]
    if draft.kept("head") is None:
        draft.keep("head", _drawn({path: wanted[path] for path in fresh}, source, seed))
    draft.tensors = {path: draft.tensors[path] for path in wanted}  # the same order after a kill
    return fresh


def _drawn(parameters: Mapping[str, Any], source: Source, seed: int) -> dict[str, torch.Tensor]:
    """Random matrices and blank vectors in the shapes of parameters."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    spread = float(source.config.get("initializer_range", 0.02))
    return {
        name: torch.randn(parameter.shape, generator=generator) * spread
        if parameter.dim() > 1
        else torch.zeros(parameter.shape)
        for name, parameter in parameters.items()
    }
