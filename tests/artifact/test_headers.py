"""Damaged, cut and lying headers of GGUF and safetensors files: one sentence each, never a crash."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.artifact import Tokenizer, shape
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.safetensors_file import read_headers
from negawatt.errors import ArtifactError, IntegrityError

WEIGHTS = np.arange(128, dtype=np.float32).reshape(4, 32)


def write_gguf(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"block_count": 2, "embedding_length": 32, "feed_forward_length": 64,
                        "attention.head_count": 4, "context_length": 128}.items():  # fmt: skip
        writer.add_uint32(f"llama.{name}", value)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ab", "<s>", "Ã¤"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 1, 3, 1])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.0, 0.0, 1.0])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 3)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("token_embd.weight", WEIGHTS)
    quantized = gguf.quants.quantize(WEIGHTS, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return path, write_gguf(path)


def test_a_whole_file_reads_as_the_reference_reader_does(whole: tuple[Path, bytes]) -> None:
    path, _ = whole
    ours, theirs = GgufFile.open(path), gguf.GGUFReader(path)
    assert Tokenizer.from_gguf(ours).encode("ab<s>") == [2, 3]
    assert shape.from_gguf(ours).head_dim == 8
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert dict(ours.metadata) == fields
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.offset, info.n_bytes, info.type) == (
            tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name,
        )  # fmt: skip
        assert info.shape == tuple(tensor.shape[::-1])
    assert np.array_equal(ours.dequantized("token_embd.weight"), WEIGHTS)
    assert np.allclose(ours.dequantized("output.weight"), WEIGHTS, atol=0.6)


def test_every_block_size_agrees_with_the_gguf_package() -> None:
    from negawatt.artifact.gguf_file import BLOCKS

    for kind, (name, weights, n_bytes) in BLOCKS.items():
        assert gguf.GGMLQuantizationType(kind).name == name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (weights, n_bytes)


def test_a_file_cut_anywhere_is_refused(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    _, data = whole
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(data) - 160, 7), len(data) - 200]:
        cut.write_bytes(data[:length])
        with pytest.raises(IntegrityError, match=r"cut\.gguf .*(cut off|no header|ends inside)"):
            GgufFile.open(cut)


@settings(max_examples=400, deadline=None)
@given(position=st.integers(0, 900), value=st.binary(min_size=1, max_size=8))
def test_a_damaged_header_never_crashes(whole: tuple[Path, bytes], position: int, value: bytes) -> None:
    path, data = whole
    hurt = path.with_name("hurt.gguf")
    hurt.write_bytes(data[:position] + value + data[position + len(value) :])
    with contextlib.suppress(ArtifactError):
        opened = GgufFile.open(hurt)
        with contextlib.suppress(ArtifactError):
            shape.from_gguf(opened)
        Tokenizer.from_gguf(opened).encode("ab")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"PK\x03\x04" + bytes(60), "is no GGUF file: it begins with"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"version \d+; versions 2 and 3 \(little-endian\)"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims 1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "claims .* metadata fields"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "ends inside metadata field 1"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 40),
            "elements of a",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77),
            "a has the unknown type 77",
        ),
    ],
)
def test_absurd_gguf_headers(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "absurd.gguf"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=sentence):
        GgufFile.open(path)


# -- safetensors ---------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"abc", "header claims"),
        (safetensors({}, length=1 << 62), "header claims"),
        (safetensors(b"not json"), "its header is not JSON"),
        (safetensors([1, 2]), "its header is not a JSON object"),
        (safetensors({"w": 3}), "does not describe tensors"),
        (safetensors({"w": tensor(0, 8, [2])}, bytes(4)), "should be .* bytes by its header"),
        (safetensors({"w": tensor(0, 8, [2])}, bytes(12)), "should be .* bytes by its header"),
        (safetensors({"w": tensor(0, 8, [3])}, bytes(8)), r"w is \(3,\) F32 in 8 bytes"),
        (safetensors({"w": tensor(0, 8, [-2])}, bytes(8)), r"w is \(-2,\) F32"),
        (safetensors({"w": tensor(0, 8, [2]), "v": tensor(4, 12, [2])}, bytes(12)), "overlap or leave gaps"),
        (safetensors({"w": tensor(4, 12, [2])}, bytes(12)), "overlap or leave gaps"),
        (safetensors({"w": tensor(0, 8, [2], "F99")}, bytes(8)), "does not describe tensors"),
    ],
)
def test_lying_safetensors_headers(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=sentence):
        read_headers(tmp_path)


def test_an_index_that_leaves_the_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"w": "../../etc/passwd"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="names a file outside its folder"):
        read_headers(tmp_path)


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="model-00001-of-00002"):
        read_headers(tmp_path)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200), length=st.integers(0, 300))
def test_random_bytes_are_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "model.safetensors").write_bytes(safetensors(content, length=length))
    with contextlib.suppress(ArtifactError):
        read_headers(folder)
