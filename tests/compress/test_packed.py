"""Quantized weights on disk: packing and its inverse, and the grids that GGUF holds exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.packed_file import BITS, pack, read_packed, unpack
from negawatt.artifact.safetensors_file import read_headers, read_metadata
from negawatt.compress import Recipe, compress, parse
from negawatt.errors import ArtifactError, IntegrityError
from negawatt.testing.small_models import TEXT, small_model


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 67), st.integers(0, 2**32 - 1))
def test_unpacking_undoes_packing(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    stream = pack(codes, bits)
    assert stream.shape == (rows, -(-columns * bits // 8))
    assert (unpack(stream, bits, columns) == codes).all()


def test_codes_are_a_stream_of_bits_least_significant_first() -> None:
    assert pack(np.array([[1, 2]], np.uint8), 4).tolist() == [[0x21]]
    assert pack(np.array([[1, 2, 3, 4, 5, 6, 7, 0]], np.uint8), 3).tolist() == [[0xD1, 0x58, 0x1F]]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text") / "text.txt"
    place.write_text(TEXT * 2, "utf-8")
    return place


def packed(folder: Path, text: Path, technique: str, family: str = "llama") -> Artifact:
    model = small_model(folder / "model", family)
    compress(Recipe(str(model), (parse(technique),), str(text), heldout=1, length=64), folder / "packed")
    return Artifact.open(folder / "packed")


@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        ("rtn:bits=4,group=32", "Q4_0"),
        ("rtn:bits=4,group=64", "Q4_0"),
        ("rtn:bits=4,group=32,symmetric=false", "Q4_1"),
        ("rtn:bits=8,group=32", "Q8_0"),
        ("rtn:bits=8,group=32,symmetric=false", "F32"),
        ("rtn:bits=3,group=32", "F32"),
        ("rtn:bits=4,group=16", "F32"),
    ],
)
def test_gguf_holds_the_very_weights_of_the_grid(
    technique: str, expected: str, text: Path, tmp_path: Path, fresh_home: Path
) -> None:
    artifact = packed(tmp_path, text, technique)
    gguf = GgufFile.open(artifact.gguf())
    assert gguf.tensors["blk.1.ffn_down.weight"].type == expected
    dense = read_headers(artifact.checkpoint())
    for ours, theirs in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.2.self_attn.o_proj.weight", "blk.2.attn_output.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ):
        assert gguf.dequantized(theirs) == pytest.approx(dense[ours].float32(), rel=1e-6, abs=1e-7)


def test_the_checkpoint_of_a_packed_gguf_is_the_packed_checkpoint(
    text: Path, tmp_path: Path, fresh_home: Path
) -> None:
    """Query and key rows change places in GGUF; on the way back they must come out as they were."""
    artifact = packed(tmp_path, text, "rtn:bits=4,group=32")
    back = read_headers(Artifact.open(artifact.gguf()).checkpoint())
    for name, tensor in read_headers(artifact.checkpoint()).items():
        assert back[name].float32() == pytest.approx(tensor.float32(), rel=1e-6, abs=1e-7)


def test_transposed_matrices_come_back_as_they_lay(text: Path, tmp_path: Path, fresh_home: Path) -> None:
    artifact = packed(tmp_path, text, "rtn:bits=8,group=32", "gpt2")
    before, after = read_headers(tmp_path / "model"), read_headers(artifact.checkpoint())
    name = next(n for n in before if n.endswith("h.0.mlp.c_fc.weight"))
    assert after[name].shape == before[name].shape
    assert np.abs(after[name].float32() - before[name].float32()).max() < 0.01


def test_a_description_that_does_not_fit_is_refused(text: Path, tmp_path: Path) -> None:
    artifact = packed(tmp_path, text, "rtn:bits=4,group=32")
    file = artifact.path / "packed.safetensors"
    described = read_metadata(file)["negawatt"]
    for change, kind in (
        ({"bits": 2}, IntegrityError), ({"columns": 100}, IntegrityError), ({"schema": 9}, ArtifactError),
    ):  # fmt: skip
        content = json.loads(described)
        if "schema" in change:
            content |= change
        else:
            next(iter(content["tensors"].values())).update(change)
        _with_metadata(file, json.dumps(content))
        with pytest.raises(kind, match=r"do not fit each other|newer Negawatt"):
            read_packed(artifact.path)


def _with_metadata(file: Path, described: str) -> None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["negawatt"] = described
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
