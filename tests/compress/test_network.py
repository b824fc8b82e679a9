"""Models of every family run block by block as transformers runs them whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, Source, compress, parse
from negawatt.compress.encoder_decoder import shifted
from negawatt.compress.moments import moments
from negawatt.compress.network import Network
from negawatt.errors import ArtifactError, UsageError
from negawatt.testing.small_models import ENCODER_DECODERS, FAMILIES, MORE_FAMILIES, small_model


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_blocks_one_by_one_are_the_model(family: str, tmp_path: Path) -> None:
    """Embedding, blocks and head run apart give what transformers gives for the whole."""
    network = Network(Source.of(Artifact.open(small_model(tmp_path / "model", family))))
    tokens = torch.randint(0, 400, (3, 40), generator=torch.Generator().manual_seed(0))
    hidden = network.embedded(tokens)
    assert hidden.shape == (3, 80 if family in (*ENCODER_DECODERS, "bart") else 40, 64)
    for number in range(len(network.blocks)):
        with network.loaded(number):
            hidden = network.forward(number, hidden)
        assert network.linears(number)
    kind = transformers.AutoModelForCausalLM if network.is_decoder else transformers.AutoModel
    model = kind.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        two = {"decoder_input_ids": shifted(tokens, model.config)} if network.n_encoder else {}
        whole = model(input_ids=tokens, **two)
    if network.is_decoder:
        logits = whole.logits[:, :-1].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        assert network.losses(tokens, hidden).flatten() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    else:
        assert network.outputs(tokens, hidden) == pytest.approx(whole.last_hidden_state, rel=1e-4, abs=1e-4)
    assert all(p.device.type == "meta" for p in network.model.parameters())  # nothing stays loaded


def test_the_decoder_looks_at_the_encoder_through_layers_of_its_own(tmp_path: Path) -> None:
    """Keys and values of cross-attention share their inputs, which are what the encoder gave."""
    network = Network(Source.of(Artifact.open(small_model(tmp_path / "model", "t5"))))
    hidden = network.embedded(torch.arange(5, 25).reshape(2, 10))
    first = network.n_encoder
    with network.loaded(first):
        found = moments(network, first, hidden, network.linears(first))
    groups = [{linear.path.rpartition(".")[2] for linear in each.linears} for each in found]
    assert {"k", "v"} in groups
    (cross,) = (each for each, names in zip(found, groups, strict=True) if names == {"k", "v"})
    states = hidden[:, :10].reshape(-1, 64)
    assert torch.allclose(cross.matrix, states.T @ states / 20, atol=1e-4)


def test_an_encoder_decoder_is_told_to_bring_text(tmp_path: Path) -> None:
    asked = Recipe(str(small_model(tmp_path / "model", "t5")), (parse("rtn"),), length=32, threads=1)
    with pytest.raises(UsageError, match="does not write text"):
        compress(asked, tmp_path / "out")


def test_stacks_of_unequal_width_are_not_narrowed(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "marian", decoder_ffn_dim=256)
    with pytest.raises(ArtifactError, match="feed-forward parts of 128 and 256 channels"):
        parse("width:ffn=0.3").check(Source.of(Artifact.open(model)))


def test_a_model_that_shares_one_block_among_layers_is_refused(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    config = transformers.AlbertConfig(
        hidden_size=64, embedding_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        vocab_size=416,
    )  # fmt: skip
    transformers.AlbertModel(config).save_pretrained(model)
    with pytest.raises(ArtifactError, match="0 lists of blocks"):
        Network(Source.of(Artifact.open(model)))


def test_passes_that_need_one_stack_say_so(tmp_path: Path) -> None:
    source = Source.of(Artifact.open(small_model(tmp_path / "model", "t5")))
    for name in ("adapter", "classifier", "depth", "heal", "qat", "vocabulary"):
        with pytest.raises(UsageError, match=f"{name}: model has an encoder and a decoder, "):
            parse(name).check(source)


def test_a_head_that_is_missing_is_not_taken_from_an_embedding_that_is_not_tied(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "qwen2")  # its head is a matrix of its own
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" not in Network(Source.of(Artifact.open(folder))).checkpoint_names
