"""GGUF to checkpoint and back: the same bits, and the same logits in transformers and llama.cpp."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamacpp_reference import Reference

from negawatt.artifact import Artifact
from negawatt.artifact.architectures import deinterleave, interleave
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.safetensors_file import read_headers
from negawatt.artifact.to_checkpoint import convert as to_checkpoint
from negawatt.artifact.to_gguf import convert as to_gguf
from negawatt.errors import ArtifactError

TEXT = "In 2026 the capital of France was still Paris; def f(x): return x + 1  # naïve 😀"

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 50_000.0,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
}


def transformers_logits(folder: Path, ids: list[int], **how: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0])


def llamacpp_logits(file: Path, ids: list[int], scratch: Path) -> np.ndarray:
    with Reference(file) as llamacpp:
        return llamacpp.logits(ids, scratch / "logits.npy")


def small_checkpoint(folder: Path, kind: str, tokenizer_from: Path, dtype: str = "float32") -> Path:
    """A random model of the given kind, written by transformers itself."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    vocab = len(json.loads((tokenizer_from / "tokenizer.json").read_text())["model"]["vocab"])
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, "vocab_size": vocab, **KINDS[kind]})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():  # norms and biases start at 0 or 1: make them matter
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn_like(weight) + (0.05 if "bias" in name else 0)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return folder


def test_there_and_back_again_is_bit_identical(model: Artifact, tmp_path: Path) -> None:
    first = model.checkpoint()
    to_gguf(first, tmp_path / "again.gguf", name="again")
    to_checkpoint(tmp_path / "again.gguf", tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes(), name
    original, again = GgufFile.open(model.gguf()).metadata, GgufFile.open(tmp_path / "again.gguf").metadata
    for key in (
        "tokens",
        "merges",
        "token_type",
        "pre",
        "model",
        "bos_token_id",
        "eos_token_id",
        "add_bos_token",
    ):
        assert again[f"tokenizer.ggml.{key}"] == original[f"tokenizer.ggml.{key}"], key


def test_the_checkpoint_says_what_the_gguf_says(model: Artifact) -> None:
    checkpoint = Artifact.open(model.checkpoint())
    assert checkpoint.formats == {"checkpoint"}
    assert checkpoint.shape == model.shape
    assert checkpoint.weight_bytes == 4 * model.shape.n_params
    config = json.loads((checkpoint.path / "config.json").read_text())
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100_000.0, 1e-5)


def test_llama_cpp_computes_the_same_from_the_original_file(model: Artifact, tmp_path: Path) -> None:
    ids = model.tokenizer.encode(TEXT)
    ours = transformers_logits(model.checkpoint(), ids)
    theirs = llamacpp_logits(model.gguf(), ids, tmp_path)
    assert np.abs(ours - theirs).mean() < 0.2  # llama.cpp rounds activations to 8 bits for 4-bit weights
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.9


def test_transformers_own_gguf_loader_computes_the_same(model: Artifact) -> None:
    pytest.importorskip("accelerate", reason="transformers' GGUF loader needs accelerate")
    ids = model.tokenizer.encode(TEXT)
    ours = transformers_logits(model.checkpoint(), ids)
    theirs = transformers_logits(model.gguf().parent, ids, gguf_file=model.gguf().name)
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_means_the_same_everywhere(kind: str, model: Artifact, tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path / kind, kind, model.checkpoint())
    ids = model.tokenizer.encode(TEXT)
    reference = transformers_logits(checkpoint, ids)

    to_gguf(checkpoint, tmp_path / "model.gguf", name=kind)
    theirs = llamacpp_logits(tmp_path / "model.gguf", ids, tmp_path)
    assert np.abs(reference - theirs).max() < 0.02 * np.abs(reference).max()

    to_checkpoint(tmp_path / "model.gguf", tmp_path / "back")
    assert np.abs(reference - transformers_logits(tmp_path / "back", ids)).max() < 1e-4
    opened, back = Artifact.open(checkpoint), Artifact.open(tmp_path / "back")
    assert opened.shape == back.shape == Artifact.open(tmp_path / "model.gguf").shape


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept(dtype: str, model: Artifact, tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path / "half", "llama", model.checkpoint(), dtype)
    to_gguf(checkpoint, tmp_path / "half.gguf", name="half")
    tensors = GgufFile.open(tmp_path / "half.gguf").tensors
    assert tensors["blk.0.ffn_up.weight"].type == {"float16": "F16", "bfloat16": "BF16"}[dtype]
    to_checkpoint(tmp_path / "half.gguf", tmp_path / "back")
    before, after = read_headers(checkpoint), read_headers(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert np.array_equal(tensor.float32(), after[name].float32()), name


def test_interleaving_is_undone() -> None:
    weight = np.arange(8 * 6 * 5).reshape(48, 5)
    assert np.array_equal(deinterleave(interleave(weight, 8, where="w"), 8, where="w"), weight)
    assert list(interleave(np.arange(6), 1, where="w")) == [0, 3, 1, 4, 2, 5]
    with pytest.raises(ArtifactError, match="attn_q has 48 rows, which are not 5 heads"):
        interleave(weight, 5, where="attn_q")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba'; llama, qwen2, qwen3, gemma3_text can be converted"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "scales its rotary positions"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scales its rotary positions"),
        ({"attention_bias": True}, "sets attention_bias, which is not converted yet"),
        ({"quantization_config": {"bits": 4}}, "sets quantization_config"),
    ],
)
def test_what_would_change_the_model_is_refused(
    changes: dict[str, Any], sentence: str, model: Artifact, tmp_path: Path
) -> None:
    shutil.copytree(model.checkpoint(), tmp_path / "odd", copy_function=lambda a, b: Path(b).symlink_to(a))
    config = json.loads((model.checkpoint() / "config.json").read_text())
    (tmp_path / "odd" / "config.json").unlink()
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ArtifactError, match=sentence):
        to_gguf(tmp_path / "odd", tmp_path / "odd.gguf", name="odd")
    assert not (tmp_path / "odd.gguf").exists()
