"""Classifiers of texts in OpenVINO: encoders with a head, beside what they tell apart."""

from __future__ import annotations

import shutil
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.engine import openvino_encoder, rounded_inputs, traced
from negawatt.engine.transformers import classifier_of
from negawatt.home import written_beside


def make(artifact: Artifact, weight_format: str, target: Path) -> None:
    """Write the IR of a classifier into the folder `target`, with its ``config.json``, whole or not at all.

    ``native`` multiplies in integers where the artifact rounds inputs, and is half precision for all else.

    Raises:
        EngineError: the library cannot convert it.
        MissingDependency: OpenVINO, NNCF, torch or transformers is missing.
    """
    checkpoint = artifact.checkpoint()
    rounding = rounded_inputs.rounding_of(artifact.path) if weight_format == "native" else {}
    with written_beside(target) as folder:
        folder.mkdir()
        model = classifier_of(checkpoint, "fp32")
        openvino_encoder.write(model, weight_format, folder, rounding, traced.LOGITS)
        shutil.copyfile(checkpoint / "config.json", folder / "config.json")
