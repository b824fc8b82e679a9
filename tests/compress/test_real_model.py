"""The real model: quantized weights run in engines as they were chosen."""

from __future__ import annotations

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.artifact.gguf_file import GgufFile
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings
from negawatt.testing.small_models import TEXT


@pytest.fixture(scope="module")
def rounded(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("rounded")
    (folder / "text.txt").write_text(TEXT, "utf-8")
    recipe = Recipe(
        "smollm2-135m-instruct",
        (parse("rtn:bits=4,group=64"),),
        str(folder / "text.txt"),
        heldout=1,
        length=64,
        threads=1,  # two that wait for each other on a busy machine take minutes
    )
    compress(recipe, folder / "out")
    return Artifact.open(folder / "out")


def test_llama_cpp_runs_the_very_weights(rounded: Artifact) -> None:
    """Log-probabilities of llama.cpp on Q4_0 follow those of transformers on the dequantised weights.

    Its kernels also round activations to 8 bits, which alone moves them by 0.05; the weights before they
    were rounded are 0.3 away.
    """
    gguf = GgufFile.open(rounded.gguf())
    assert gguf.tensors["blk.0.ffn_up.weight"].type == "Q4_0"
    assert gguf.tensors["token_embd.weight"].type == "Q8_0"
    tokens = rounded.tokenizer.encode(TEXT)[:48]
    rows = []
    for engine in ("transformers", "llamacpp"):
        with Engine(rounded, Settings(engine=engine, threads=1, max_context=128)) as opened:
            ((scores, _),), _ = opened.score([(tokens[:8], tokens[8:])])
            rows.append(scores)
    assert np.abs(np.subtract(*rows)).mean() < 0.12


def test_four_bits_are_a_sixth_of_the_weights(model: Artifact, rounded: Artifact) -> None:
    assert rounded.weight_bytes < 0.18 * 4 * model.shape.n_params
    assert rounded.shape.n_params == model.shape.n_params
    assert rounded.notes == model.notes  # that the original came out of 4 bits is not forgotten
