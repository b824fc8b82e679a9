"""Classifiers of texts in OpenVINO: the program that torch traces, with weights as asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import PackedTensor
from negawatt.engine import classifier, openvino_encoder, openvino_ir, rounded_inputs, traced
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.openvino_integers import multiply_in_integers
from negawatt.engine.padding import Padded, pad_of
from negawatt.engine.transformers import classifier_of
from negawatt.errors import EngineError
from negawatt.home import written_beside

FAMILIES = ("bert", "mpnet", "roberta", "xlm-roberta", "electra", "distilbert")
"""Model types whose classifiers multiply in integers where an artifact rounds inputs."""
LENGTHS = 8
"""Texts are filled up to a multiple of so many tokens: a kernel is made for every length that comes."""


def make(artifact: Artifact, weight_format: str, target: Path) -> None:
    """Write the IR of a classifier into the folder `target`, with its ``config.json``, whole or not at all.

    ``native`` multiplies in integers where the artifact rounds inputs, and is half precision for all else.

    Raises:
        EngineError: the library cannot convert it.
        MissingDependency: OpenVINO, NNCF, torch or transformers is missing.
    """
    checkpoint = artifact.checkpoint()
    rounding = rounded_inputs.rounding_of(artifact.path) if weight_format == "native" else {}
    model = openvino_encoder.converted(traced.encoder(classifier_of(checkpoint, "fp32"), traced.LOGITS))
    if rounding:
        model = multiply_in_integers(model, named(model, rounding))
    elif weight_format.startswith("int"):
        model = openvino_ir.compress(model, weight_format)
    with written_beside(target) as folder:
        folder.mkdir()
        openvino_encoder.save(model, folder)
        shutil.copyfile(checkpoint / "config.json", folder / "config.json")


class Texts:
    """A compiled classifier.

    Args:
        compiled: model of OpenVINO.
        folder: that `make` wrote.
    """

    def __init__(self, compiled: Any, folder: Path) -> None:
        self._request = compiled.create_infer_request()
        self._pad = pad_of(folder)
        length = compiled.input(0).partial_shape[1]
        self._most = int(length.get_max_length()) if length.get_max_length() > 0 else None

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """One row of logits for each chunk, which is a whole text."""
        texts = [chunk.tokens for chunk in chunks]
        given = Padded.of(texts, self._pad, multiple=LENGTHS, most=self._most)
        found = self._request.infer([given.tokens, given.mask], share_inputs=True, share_outputs=True)
        return classifier.rows_of(np.asarray(found[0], np.float32))


def named(model: Any, rounding: Mapping[str, PackedTensor]) -> dict[str, PackedTensor]:
    """The matrices under the names of the constants of `model` that hold them.

    The library calls a tensor as torch did, with underscores for dots.

    Raises:
        EngineError: a matrix is not in the model.
    """
    places: dict[str, str] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            places |= {n.partition(":")[0]: node.get_friendly_name() for n in node.output(0).get_names()}
    found = {}
    for name, tensor in rounding.items():
        mine = f"model_{name.replace('.', '_')}"
        if mine not in places:
            raise EngineError(f"openvino converted no matrix called {name}")
        found[places[mine]] = tensor
    return found
